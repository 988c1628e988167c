"""SettleCalls: what calls took that nobody waits for, and what is left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2

from common.errors import received
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    gateway_service,
    generate,
    metadata,
    violated_fields,
)
from tests.support.played_model import Gate, PlayedModel, answers

TIMEOUT_S = 30


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture
async def stub(provider: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    """A gateway that reads what nobody waits for longer than any test lasts."""
    path = config_file(tmp_path / "c.toml", [provider.base_url])
    async with gateway_service(path, abandoned_drain_s=60.0) as serving:
        yield serving


def ask(stub: Any, request_id: str, **token: Any) -> Any:
    request = generate(text="x" * 400)
    request.call.request_id = request_id
    return stub.Generate(request, metadata=metadata(**token), timeout=TIMEOUT_S)


async def settle(stub: Any, prefix: str, grace_s: float = 0.0, **token: Any) -> Any:
    request = pb2.SettleCallsRequest(request_id_prefix=prefix)
    request.grace.FromNanoseconds(int(grace_s * 1e9))
    return await stub.SettleCalls(request, metadata=metadata(**token), timeout=TIMEOUT_S)


async def settle_cut(stub: Any, prefix: str, grace_s: float = 0.0) -> Any:
    """Settle once the gateway has heard that nobody waits for any of the calls."""
    settled = await settle(stub, prefix, grace_s)
    while settled.calls_open:
        settled = await settle(stub, prefix, grace_s)
    return settled


async def test_what_was_cut_off_is_booked_at_once_and_told(
    stub: Any, provider: PlayedModel
) -> None:
    """Its run is about to end, and says what it took."""
    answered = await ask(stub, "a/1/0/0")
    provider.plan(Gate(answers("never")))
    cut = ask(stub, "a/2/1/1")
    await eventually(lambda: provider.under_way == 1)
    cut.cancel()

    started_s = time.monotonic()
    settled = await settle_cut(stub, "a/")
    took_s = time.monotonic() - started_s

    assert settled.calls_open == 0
    assert took_s < 30, "and not when the provider is no longer read, after a minute"
    by_id = {each.request_id: each for each in settled.calls}
    assert by_id["a/1/0/0"].usage == answered.generation.usage
    assert by_id["a/1/0/0"].model == answered.generation.model
    late = by_id["a/2/1/1"]
    assert late.tier == "sub"
    assert late.usage.input_tokens == 101
    assert late.usage.estimated
    assert late.usage.calls == 0
    assert (await settle(stub, "a/")).calls == settled.calls, "nothing comes after that"


async def test_a_provider_that_answers_within_the_grace_says_what_it_took(
    stub: Any, provider: PlayedModel
) -> None:
    gate = Gate(answers("late"))
    provider.plan(gate)
    cut = ask(stub, "a/1/0/0")
    await eventually(lambda: provider.under_way == 1)
    cut.cancel()

    settling = asyncio.create_task(settle_cut(stub, "a/", grace_s=9.0))
    gate.opened.set()
    [told] = (await settling).calls

    assert not told.usage.estimated
    assert told.usage.calls == 1


async def test_a_call_that_somebody_waits_for_is_left_alone(
    stub: Any, provider: PlayedModel
) -> None:
    gate = Gate(answers("in time"))
    provider.plan(gate)
    waiting = ask(stub, "a/1/0/0")
    await eventually(lambda: provider.under_way == 1)

    settled = await settle(stub, "a/")
    gate.opened.set()

    assert (list(settled.calls), settled.calls_open) == ([], 1)
    assert (await waiting).generation.text == "in time"


async def test_calls_of_others_are_not_told(stub: Any) -> None:
    """Of another prefix, where a letter that means anything in a pattern means itself; of another
    run; of another tenant."""
    for request_id in ("a_/1/0/0", "ab/1/0/0", "A_/1/0/0"):
        await ask(stub, request_id)
    await ask(stub, "a_/1/0/1", run="runs/other")
    await ask(stub, "a_/1/0/2", tenant="other")

    assert [each.request_id for each in (await settle(stub, "a_/")).calls] == ["a_/1/0/0"]


@pytest.mark.parametrize(
    ("prefix", "grace_s", "fields"),
    [
        ("", 0.0, {"request_id_prefix"}),
        ("x" * 257, 0.0, {"request_id_prefix"}),
        ("x" * 256, 10.0, set()),
        ("x", 10.1, {"grace"}),
        ("x", -0.1, {"grace"}),
    ],
)
async def test_a_bad_field_is_named(
    stub: Any, prefix: str, grace_s: float, fields: set[str]
) -> None:
    try:
        await settle(stub, prefix, grace_s)
    except grpc.aio.AioRpcError as error:
        failure = received(error)
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert violated_fields(failure.to_status()) == fields
    else:
        assert not fields


async def test_it_needs_a_run_token(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.SettleCalls(pb2.SettleCallsRequest(request_id_prefix="a/"), timeout=TIMEOUT_S)

    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED

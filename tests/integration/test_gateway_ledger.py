"""Repeats and restarts of a gateway over its real ledger."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import CallContext

from common.config import Secret
from tests.support.eventually import eventually
from tests.support.gateway import (
    KEY,
    config_file,
    gateway_channel,
    gateway_service,
    generate,
    metadata,
    stream_generate,
    violated_fields,
    wire_prompt,
)
from tests.support.gateway_calls import COST, TIMEOUT_S, ask, asked, error_of, get_usage
from tests.support.played_model import Gate, PlayedModel, answers, fails, sends
from tests.support.postgres import PostgresServer


@pytest.fixture
def config(provider: PlayedModel, tmp_path: Path) -> Path:
    return config_file(tmp_path / "c.toml", [provider.base_url])


async def test_a_repeat_gets_the_same_answer_and_pays_nothing(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    async with gateway_service(config, database_url=Secret(database_url)) as stub:
        first = await ask(stub, asked())
        again = await ask(stub, asked())

    assert (first.attempts, first.usage.cost_usd_nanos, first.usage.calls) == (1, COST, 1)
    assert (again.text, again.model, again.finish_reason) == (
        first.text,
        first.model,
        first.finish_reason,
    )
    assert again.attempts == 0
    assert again.usage.ByteSize() == 0
    assert len(provider.bodies) == 1


async def test_a_hundred_identical_calls_at_once_ask_the_provider_once(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    async with gateway_service(config, database_url=Secret(database_url)) as stub:
        generations = await asyncio.gather(*(ask(stub, asked()) for _ in range(100)))

    assert len(provider.bodies) == 1
    assert {each.text for each in generations} == {"hello there"}
    assert sum(each.usage.cost_usd_nanos for each in generations) == COST


async def test_another_prompt_under_one_id_is_aborted(config: Path, provider: PlayedModel) -> None:
    async with gateway_service(config) as stub:
        await ask(stub, asked())
        error = await error_of(
            stub.Generate(asked(text="other"), metadata=metadata(), timeout=TIMEOUT_S)
        )

    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason_name == "ERROR_REASON_REQUEST_ID_REUSED"
    assert error.metadata == {"request_id": "a"}
    assert len(provider.bodies) == 1


async def test_a_streamed_call_is_repeated_in_one_piece(
    config: Path, provider: PlayedModel
) -> None:
    """Also by a caller who asks for it whole: it is the same call."""
    request = stream_generate()
    request.call.request_id = "a"
    provider.plan(answers("one two", reasoning="because"))
    async with gateway_service(config) as stub:
        first = [
            each async for each in stub.StreamGenerate(request, metadata=metadata(), timeout=30)
        ]
        again = [
            each async for each in stub.StreamGenerate(request, metadata=metadata(), timeout=30)
        ]
        whole = await ask(stub, asked())

    assert first[-1].generation.text == "one two"
    assert [each.WhichOneof("event") for each in again] == [
        "start",
        "reasoning_delta",
        "text_delta",
        "generation",
    ]
    assert (again[2].text_delta, again[1].reasoning_delta) == ("one two", "because")
    assert whole.text == again[3].generation.text == "one two"
    assert len(provider.bodies) == 1


async def test_items_of_a_batch_with_one_id_are_one_call(
    config: Path, provider: PlayedModel
) -> None:
    start = pb2.BatchGenerateRequest(start=pb2.BatchStart())
    items = [
        pb2.BatchGenerateRequest(
            item=pb2.BatchItem(index=index, prompt=wire_prompt(), call=CallContext(request_id="a"))
        )
        for index in range(3)
    ]
    async with gateway_service(config) as stub:
        stream = stub.BatchGenerate(iter([start, *items]), metadata=metadata(), timeout=TIMEOUT_S)
        texts = [each.generation.text async for each in stream]

    assert texts == ["hello there"] * 3
    assert len(provider.bodies) == 1


async def test_a_failed_call_is_made_again_and_both_are_paid(
    config: Path, provider: PlayedModel
) -> None:
    cut = sends(b'{"usage": {"prompt_tokens": 10, "completion_tokens": 3}}')
    provider.plan(cut, cut, cut)
    async with gateway_channel(config, operator_key=KEY) as channel:
        stub = GatewayServiceStub(channel)
        error = await error_of(stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S))
        assert error.reason_name == "ERROR_REASON_PROVIDER_BROKEN_REPLY"
        again = await ask(stub, asked())
        (row,) = (await get_usage(channel)).rows

    assert (again.attempts, len(provider.bodies)) == (1, 4)
    assert (row.usage.cost_usd_nanos, row.usage.calls) == (4 * COST, 1)
    assert again.usage.cost_usd_nanos == COST
    assert again.recorded_usage == row.usage


async def test_a_call_that_fails_again_tells_of_all_that_was_paid_for_it(
    config: Path, provider: PlayedModel
) -> None:
    """Who asks again may not have heard of the first failure."""
    cut = sends(b'{"usage": {"prompt_tokens": 10, "completion_tokens": 3}}')
    provider.plan(*[cut] * 6)
    async with gateway_service(config) as stub:
        errors = [
            await error_of(stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S))
            for _ in range(2)
        ]

    told = [error.metadata["cost_usd_nanos"] for error in errors]
    assert told == [str(3 * COST), str(len(provider.bodies) * COST)]
    assert len(provider.bodies) > 3


async def test_a_call_that_is_new_has_no_recorded_usage(
    config: Path, provider: PlayedModel
) -> None:
    """Nor has one that is repeated after it failed for nothing."""
    provider.plan(fails(400, {"message": "no"}))
    async with gateway_service(config) as stub:
        await error_of(stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S))
        mended = await ask(stub, asked())
        unnamed = await ask(stub, asked(request_id=""))

    assert [each.HasField("recorded_usage") for each in (mended, unnamed)] == [False, False]


async def test_a_rejected_call_frees_its_id_for_another_prompt(
    config: Path, provider: PlayedModel
) -> None:
    provider.plan(fails(400, {"message": "no"}))
    async with gateway_service(config) as stub:
        await error_of(stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S))

        assert (await ask(stub, asked(text="mended"))).attempts == 1


async def test_after_a_restart_answers_are_there_and_limits_hold(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    """The token says that nothing was spent: the books know better."""
    settings = {"database_url": Secret(database_url)}
    limits = {"cost_usd_nanos_max": 3 * COST}
    async with gateway_service(config, **settings) as stub:
        for number in range(2):
            await ask(stub, asked(f"{number}", output_tokens_max=3), **limits)
    async with gateway_service(config, **settings) as stub:
        again = await ask(stub, asked("1", output_tokens_max=3), **limits)
        refused = await error_of(
            stub.Generate(
                asked("2", output_tokens_max=3), metadata=metadata(**limits), timeout=TIMEOUT_S
            )
        )

    assert again.attempts == 0
    assert refused.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert refused.metadata["spent"] == str(2 * COST)
    assert len(provider.bodies) == 2


async def test_an_answer_is_served_where_nothing_is_left_to_spend(
    config: Path, provider: PlayedModel
) -> None:
    """A repeat costs nothing, so no limit can stand before it."""
    async with gateway_service(config) as stub:
        await ask(stub, asked(output_tokens_max=3))

        assert (await ask(stub, asked(output_tokens_max=3), cost_usd_nanos_max=1)).attempts == 0


async def test_what_a_caller_left_under_way_is_recorded_for_its_repeat(
    config: Path, provider: PlayedModel
) -> None:
    gate = Gate(answers("drained"))
    provider.plan(gate)
    async with gateway_service(config) as stub:
        call = stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S)
        await gate.reached.wait()
        call.cancel()
        repeat = asyncio.create_task(ask(stub, asked()))
        gate.opened.set()

        assert (await repeat).text == "drained"

    assert len(provider.bodies) == 1


async def test_a_gateway_that_stops_in_order_leaves_no_call_open(
    config: Path, provider: PlayedModel
) -> None:
    """What it breaks off is booked by an estimate, and nobody waits for its lease."""
    provider.plan(Gate(answers("never seen")))
    async with gateway_service(config) as stub:
        call = stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S)
        await eventually(lambda: provider.under_way == 1)
        call.cancel()
    async with gateway_channel(config, operator_key=KEY) as channel:
        again = await ask(GatewayServiceStub(channel), asked())
        (row,) = (await get_usage(channel)).rows

    assert again.attempts == 1
    assert row.usage.estimated
    assert row.usage.cost_usd_nanos == COST + 3 * 1_000, "two tokens of text and one around it"


def stored(config: Path) -> list[Path]:
    """Return the files of large answers, which have digests as names."""
    return [*(config.parent / "answers").glob("?" * 64)]


async def test_a_large_answer_is_repeated_whole(config: Path, provider: PlayedModel) -> None:
    provider.plan(answers("x" * 3_000_000))
    async with gateway_service(config) as stub:
        await ask(stub, asked())
        again = await ask(stub, asked())

    assert (again.attempts, again.text) == (0, "x" * 3_000_000)
    assert len(stored(config)) == 1


async def test_a_large_answer_is_repeated_although_the_disk_for_large_ones_is_full(
    config: Path, provider: PlayedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paid: the ledger keeps it beside its price, and nobody pays for it again."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    provider.plan(answers("x" * 3_000_000))
    async with gateway_service(config) as stub:
        first = await ask(stub, asked())
    async with gateway_service(config) as stub:
        again = await ask(stub, asked())

    assert (first.attempts, first.text) == (1, "x" * 3_000_000)
    assert (again.attempts, again.text) == (0, first.text)
    assert again.recorded_usage == first.usage
    assert len(provider.bodies) == 1
    assert stored(config) == [*(config.parent / "answers").glob("*.partial")] == []


async def test_a_lost_file_is_data_loss_and_no_second_payment(
    config: Path, provider: PlayedModel
) -> None:
    provider.plan(answers("x" * 100_000))
    async with gateway_service(config) as stub:
        await ask(stub, asked())
        for path in stored(config):
            path.unlink()
        error = await error_of(stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S))

    assert error.code is grpc.StatusCode.DATA_LOSS
    assert error.reason_name == "ERROR_REASON_ANSWER_UNREADABLE"
    assert error.metadata == {"request_id": "a"}
    assert len(provider.bodies) == 1


async def test_without_its_ledger_the_gateway_asks_nobody(
    config: Path, provider: PlayedModel
) -> None:
    """Fail closed, say so, and go on when it is back."""
    with PostgresServer() as server:
        async with gateway_channel(
            config, database_url=Secret(server.new_database()), operator_key=KEY
        ) as channel:
            stub = GatewayServiceStub(channel)
            await ask(stub, asked("before"))
            server.stop()
            calls = [
                stub.Generate(asked(), metadata=metadata(), timeout=TIMEOUT_S),
                stub.Generate(generate(), metadata=metadata(), timeout=TIMEOUT_S),
                get_usage(channel),
            ]
            errors = [await error_of(call) for call in calls]
            asked_meanwhile = len(provider.bodies) - 1
            server.start()
            after = await ask(stub, asked())

    for error in errors:
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.reason_name == "ERROR_REASON_LEDGER_UNAVAILABLE"
        assert error.retry_after_s == 1.0
        assert error.metadata == {}
    assert asked_meanwhile == 0
    assert after.attempts == 1


@pytest.mark.parametrize("request_id", ["x" * 257, "a\nb", "\0"])
async def test_an_id_that_cannot_be_one_is_refused(config: Path, request_id: str) -> None:
    async with gateway_service(config) as stub:
        error = await error_of(
            stub.Generate(asked(request_id), metadata=metadata(), timeout=TIMEOUT_S)
        )
        assert (await ask(stub, asked("x" * 256))).attempts == 1

    assert violated_fields(error.status) == {"call.request_id"}

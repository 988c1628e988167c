"""Quotas as operators set them, and what they let through, over the real service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from google.rpc import error_details_pb2

from common.config import Secret
from common.errors import ReceivedError, received
from tests.support.gateway import (
    KEY,
    config_file,
    gateway_channel,
    generate,
    metadata,
    violated_fields,
)
from tests.support.played_model import Gate, PlayedModel, answers

TIMEOUT_S = 30
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
DAILY = "tenants/acme/quotas/daily"
COST = 10 * 1_000 + 3 * 2_000
"""Of one usual call, in nano-dollars."""
WORST = (len("hello") + 16) * 1_000 + 3 * 2_000
"""What is reserved for it."""


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture(params=["database", "memory"])
async def channel(
    request: pytest.FixtureRequest, provider: PlayedModel, tmp_path: Path
) -> AsyncIterator[grpc.aio.Channel]:
    config = config_file(tmp_path / "c.toml", [provider.base_url])
    accounts = Secret(request.param)
    async with gateway_channel(config, operator_key=KEY, accounts=accounts) as opened:
        yield opened


async def set_quota(channel: grpc.aio.Channel, name: str = DAILY, **fields: Any) -> pb2.Quota:
    window_s = fields.pop("window_s", None)
    quota = pb2.Quota(name=name, **fields)
    if window_s is not None:
        quota.window.FromMilliseconds(int(window_s * 1_000))
    request = pb2.SetQuotaRequest(quota=quota)
    response = await QuotaServiceStub(channel).SetQuota(
        request, metadata=OPERATOR, timeout=TIMEOUT_S
    )
    stored: pb2.Quota = response.quota
    return stored


async def used(channel: grpc.aio.Channel, name: str = DAILY) -> pb2.GetQuotaResponse:
    response: pb2.GetQuotaResponse = await QuotaServiceStub(channel).GetQuota(
        pb2.GetQuotaRequest(name=name), metadata=OPERATOR, timeout=TIMEOUT_S
    )
    return response


async def ask(channel: grpc.aio.Channel, **claims: Any) -> Any:
    return await GatewayServiceStub(channel).Generate(
        generate("hello", output_tokens_max=3), metadata=metadata(**claims), timeout=TIMEOUT_S
    )


async def error_of(call: Any) -> ReceivedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return received(caught.value)


async def test_a_quota_is_kept_as_it_was_set(channel: grpc.aio.Channel) -> None:
    stored = await set_quota(
        channel, tier="sub", calls_max=5, tokens_max=0, concurrency_max=2, window_s=60
    )

    assert (await used(channel)).quota == stored
    assert (stored.calls_max, stored.tokens_max, stored.concurrency_max) == (5, 0, 2)
    assert not stored.HasField("cost_usd_nanos_max")
    assert (stored.tier, stored.window.seconds) == ("sub", 60)
    assert stored.scope == pb2.Quota.SCOPE_TENANT
    assert stored.update_time.seconds > 0


async def test_setting_again_replaces_the_limits_and_keeps_the_count(
    channel: grpc.aio.Channel,
) -> None:
    await set_quota(channel, calls_max=1)
    await ask(channel)
    await set_quota(channel, calls_max=2)
    await ask(channel)

    error = await error_of(ask(channel))

    assert error.metadata["spent"] == "2"


async def test_a_call_over_a_quota_is_refused_and_not_made(
    channel: grpc.aio.Channel, provider: PlayedModel
) -> None:
    """On either side, with code, reason, metadata, QuotaFailure and RetryInfo."""
    await set_quota(channel, calls_max=2, window_s=3_600)
    await ask(channel)
    await ask(channel, run="runs/2")

    error = await error_of(ask(channel, run="runs/3"))

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason_name == "ERROR_REASON_QUOTA_EXCEEDED"
    assert error.metadata == {"quota": DAILY, "limit": "calls_max", "value": "2", "spent": "2"}
    assert error.retry_after_s == pytest.approx(3_600 + 30, abs=60)
    failure = error_details_pb2.QuotaFailure()
    assert any(detail.Unpack(failure) for detail in error.status.details)
    assert failure.violations[0].subject == DAILY
    assert len(provider.bodies) == 2


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"tokens_max": 23}, "tokens_max"), ({"cost_usd_nanos_max": WORST - 1}, "cost_usd_nanos_max")],
)
async def test_tokens_and_money_are_refused_at_worst(
    channel: grpc.aio.Channel, limits: dict[str, Any], limit: str
) -> None:
    await set_quota(channel, **limits)
    error = await error_of(ask(channel))
    await set_quota(channel, **{name: value + 1 for name, value in limits.items()})

    assert (error.metadata["limit"], error.retry_after_s) == (limit, None)
    assert (await ask(channel)).generation.text == "hello there"


async def test_what_is_used_is_what_was_really_taken(channel: grpc.aio.Channel) -> None:
    await set_quota(channel, calls_max=100)
    await ask(channel)

    usage = (await used(channel)).used

    assert (usage.calls, usage.input_tokens, usage.cost_usd_nanos) == (1, 13, COST)


async def test_at_most_so_many_calls_are_under_way(
    channel: grpc.aio.Channel, provider: PlayedModel
) -> None:
    """The others wait, whatever run they are of."""
    gates = [Gate(answers("one")), Gate(answers("two")), Gate(answers("three"))]
    provider.plan(*gates)
    await set_quota(channel, concurrency_max=2)
    calls = [asyncio.create_task(ask(channel, run=f"runs/{n}")) for n in range(3)]
    await gates[0].reached.wait()
    await gates[1].reached.wait()

    reserved = (await used(channel)).reserved
    assert (reserved.calls, reserved.cost_usd_nanos) == (2, 2 * WORST)
    assert provider.under_way == 2
    for gate in gates:
        gate.opened.set()

    assert len(await asyncio.gather(*calls)) == 3


async def test_a_quota_limits_its_tenant_and_tier_alone(channel: grpc.aio.Channel) -> None:
    await set_quota(channel, calls_max=0, tier="root")
    await ask(channel)
    await set_quota(channel, calls_max=0, tier="sub")

    await ask(channel, tenant="other")
    assert (await error_of(ask(channel))).metadata["quota"] == DAILY


async def test_each_run_counts_for_itself_where_the_quota_says_so(
    channel: grpc.aio.Channel,
) -> None:
    await set_quota(channel, calls_max=1, scope=pb2.Quota.SCOPE_RUN)
    await ask(channel, run="runs/1")
    await ask(channel, run="runs/2")

    assert (await error_of(ask(channel, run="runs/1"))).metadata["limit"] == "calls_max"


async def test_each_key_counts_for_itself_where_the_quota_says_so(
    channel: grpc.aio.Channel,
) -> None:
    await set_quota(channel, calls_max=1, scope=pb2.Quota.SCOPE_KEY)
    await ask(channel, key="alice")
    await ask(channel, key="bob", run="runs/2")
    await ask(channel)
    await ask(channel)

    error = await error_of(ask(channel, key="alice", run="runs/3"))
    assert error.metadata["limit"] == "calls_max"


async def test_all_quotas_must_have_room(channel: grpc.aio.Channel) -> None:
    """One that is refused takes nothing of the others."""
    await set_quota(channel, calls_max=10)
    await set_quota(channel, "tenants/acme/quotas/none", calls_max=0)

    error = await error_of(ask(channel))

    assert error.metadata["quota"] == "tenants/acme/quotas/none"
    assert not (await used(channel)).used.ByteSize()


async def test_a_deleted_quota_limits_nothing(channel: grpc.aio.Channel) -> None:
    await set_quota(channel, calls_max=0)
    stub = QuotaServiceStub(channel)
    delete = pb2.DeleteQuotaRequest(name=DAILY)
    await stub.DeleteQuota(delete, metadata=OPERATOR, timeout=TIMEOUT_S)

    await ask(channel)
    error = await error_of(stub.DeleteQuota(delete, metadata=OPERATOR, timeout=TIMEOUT_S))
    assert error.code is grpc.StatusCode.NOT_FOUND
    delete.allow_missing = True
    await stub.DeleteQuota(delete, metadata=OPERATOR, timeout=TIMEOUT_S)
    missing = await error_of(used(channel))
    assert missing.metadata == {"resource": DAILY}


async def test_quotas_are_listed_by_name_page_by_page(channel: grpc.aio.Channel) -> None:
    for name in ("b", "a", "c"):
        await set_quota(channel, f"tenants/acme/quotas/{name}", calls_max=1)
    await set_quota(channel, "tenants/other/quotas/d", calls_max=1)
    stub, names, token = QuotaServiceStub(channel), list[str](), ""
    while True:
        request = pb2.ListQuotasRequest(parent="tenants/acme", page_size=2, page_token=token)
        page = await stub.ListQuotas(request, metadata=OPERATOR, timeout=TIMEOUT_S)
        names += [quota.name[-1] for quota in page.quotas]
        token = page.next_page_token
        if not token:
            break

    assert names == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("acme", {"calls_max": 1}, "quota.name"),
        ("tenants/acme/quotas/a b", {"calls_max": 1}, "quota.name"),
        (DAILY, {}, "quota"),
        (DAILY, {"calls_max": -1}, "quota.calls_max"),
        (DAILY, {"concurrency_max": -1}, "quota.concurrency_max"),
        ("tenants/a\0/quotas/daily", {"calls_max": 1}, "quota.name"),
        (DAILY, {"calls_max": 1, "tier": "x" * 257}, "quota.tier"),
        (DAILY, {"calls_max": 1, "tier": "sub\0"}, "quota.tier"),
        (DAILY, {"calls_max": 1, "scope": 9}, "quota.scope"),
        (DAILY, {"calls_max": 1, "window_s": 0.999}, "quota.window"),
        (DAILY, {"calls_max": 1, "window_s": 31 * 86_400 + 0.001}, "quota.window"),
    ],
)
async def test_a_quota_that_makes_no_sense_is_refused(
    channel: grpc.aio.Channel, name: str, fields: dict[str, Any], field: str
) -> None:
    error = await error_of(set_quota(channel, name, **fields))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(error.status) == {field}


async def test_a_limit_has_a_ceiling(channel: grpc.aio.Channel) -> None:
    await set_quota(channel, tokens_max=2**53, window_s=31 * 86_400)

    error = await error_of(set_quota(channel, tokens_max=2**53 + 1))

    assert error.reason_name == "ERROR_REASON_LIMIT_ABOVE_CEILING"


@pytest.mark.parametrize("method", ["SetQuota", "GetQuota", "ListQuotas", "DeleteQuota"])
async def test_only_operators_may_set_and_read_quotas(
    channel: grpc.aio.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run token is no operator's key; and who tries one is written down."""
    request = getattr(pb2, f"{method}Request")()
    with caplog.at_level(logging.WARNING, logger="fathom.audit"):
        for brought in (None, metadata(), (("fathom-operator-key", "x" * 40),)):
            call = getattr(QuotaServiceStub(channel), method)
            error = await error_of(call(request, metadata=brought, timeout=TIMEOUT_S))
            assert error.code is grpc.StatusCode.UNAUTHENTICATED

    problems = [record.__dict__["problem"] for record in caplog.records]
    assert problems == ["missing", "missing", "forged"]
    assert "x" * 40 not in caplog.text

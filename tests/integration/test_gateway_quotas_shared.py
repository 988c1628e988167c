"""Limits that several gateways keep together, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import quota_service_pb2 as pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub

from common.config import Secret
from common.errors import received
from tests.support.eventually import eventually
from tests.support.gateway import KEY, config_file, gateway_channel, generate, metadata
from tests.support.gateway_process import GatewayProcess
from tests.support.played_model import Gate, PlayedModel, answers
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

TIMEOUT_S = 60
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
QUOTA = "tenants/acme/quotas/all"
COST = 10 * 1_000 + 3 * 2_000
"""Of one usual call, in nano-dollars."""
WORST = (len("hello") + 16) * 1_000 + 3 * 2_000
"""What is reserved for it."""


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture
def config(provider: PlayedModel, tmp_path: Path) -> Path:
    return config_file(tmp_path / "c.toml", [provider.base_url])


@pytest.fixture(params=["sqlite", "postgresql", "valkey"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The database's URL and where accounts are, both shared by the gateways of a test."""
    sqlite = f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite"
    if request.param == "valkey":
        valkey: ValkeyServer = request.getfixturevalue("valkey")
        return sqlite, valkey.new_database()
    if request.param == "sqlite":
        return sqlite, "database"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database(), "database"


async def set_quota(channel: grpc.aio.Channel, **limits: Any) -> None:
    request = pb2.SetQuotaRequest(quota=pb2.Quota(name=QUOTA, **limits))
    await QuotaServiceStub(channel).SetQuota(request, metadata=OPERATOR, timeout=TIMEOUT_S)


async def used(channel: grpc.aio.Channel) -> tuple[int, int]:
    """Return what is taken and what is reserved of the quota, in nano-dollars."""
    response = await QuotaServiceStub(channel).GetQuota(
        pb2.GetQuotaRequest(name=QUOTA), metadata=OPERATOR, timeout=TIMEOUT_S
    )
    return response.used.cost_usd_nanos, response.reserved.cost_usd_nanos


async def ask(channel: grpc.aio.Channel, **claims: Any) -> Generation:
    response = await GatewayServiceStub(channel).Generate(
        generate("hello", output_tokens_max=3), metadata=metadata(**claims), timeout=TIMEOUT_S
    )
    generation: Generation = response.generation
    return generation


async def cost_of(channel: grpc.aio.Channel, reason: str, **claims: Any) -> int:
    """Return what a call took; nothing where it was refused for that reason."""
    try:
        return (await ask(channel, **claims)).usage.cost_usd_nanos
    except grpc.aio.AioRpcError as error:
        assert received(error).reason_name == reason, received(error)
        return 0


async def test_two_gateways_at_a_runs_cap_spend_not_a_billionth_more(
    config: Path, provider: PlayedModel, stores: tuple[str, str]
) -> None:
    """Bifrost #3547: N replicas spent N times the cap."""
    database_url, accounts = stores
    cap = 9 * COST + WORST  # ten usual calls fit, and an eleventh at worst does not
    shared: dict[str, Any] = {"lease_s": 15, "accounts": accounts}
    async with (
        GatewayProcess(config, database_url, **shared) as one,
        GatewayProcess(config, database_url, **shared) as other,
    ):
        channels = itertools.islice(itertools.cycle((one.channel, other.channel)), 60)
        reason = "ERROR_REASON_RUN_LIMIT_EXCEEDED"
        calls = [cost_of(each, reason, cost_usd_nanos_max=cap) for each in channels]
        spent = await asyncio.gather(*calls)

    assert sum(spent) == 10 * COST <= cap
    assert len(provider.bodies) == 10


async def test_two_gateways_at_a_tenants_cap_spend_not_a_billionth_more(
    config: Path, provider: PlayedModel, stores: tuple[str, str]
) -> None:
    """LiteLLM #26672 spent $99 of a $30 cap, and #40002 let 4 of 5 concurrent calls over one."""
    database_url, accounts = stores
    cap = 30 * COST
    shared: dict[str, Any] = {"lease_s": 15, "accounts": accounts}
    async with (
        GatewayProcess(config, database_url, **shared) as one,
        GatewayProcess(config, database_url, **shared) as other,
    ):
        await set_quota(one.channel, cost_usd_nanos_max=cap)
        channels = itertools.islice(itertools.cycle((one.channel, other.channel)), 1_000)
        reason = "ERROR_REASON_QUOTA_EXCEEDED"
        calls = [
            cost_of(each, reason, run=f"runs/{number}") for number, each in enumerate(channels)
        ]
        spent = await asyncio.gather(*calls)
        seen = [await used(each.channel) for each in (one, other)]

    assert sum(spent) == len(provider.bodies) * COST <= cap
    assert len(provider.bodies) >= 29
    assert seen == [(sum(spent), 0)] * 2


async def test_what_a_killed_gateway_had_reserved_is_counted_when_its_lease_ends(
    config: Path, provider: PlayedModel, stores: tuple[str, str]
) -> None:
    """No reservation is left behind, no spend is lost, and the place is free for others."""
    database_url, accounts = stores
    gate = Gate(answers("never seen"))
    async with (
        GatewayProcess(config, database_url, lease_s=3, accounts=accounts) as one,
        GatewayProcess(config, database_url, lease_s=3, accounts=accounts) as other,
    ):
        await set_quota(one.channel, cost_usd_nanos_max=10 * WORST, concurrency_max=1)
        await ask(one.channel)
        provider.plan(gate)
        call = asyncio.create_task(ask(one.channel))
        await gate.reached.wait()
        assert await used(other.channel) == (COST, WORST)
        await one.kill()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
        gate.opened.set()

        await ask(other.channel, run="runs/2")

        assert await used(other.channel) == (2 * COST + WORST, 0)


async def test_without_the_store_nothing_is_sent_and_with_it_all_goes_on(
    config: Path, provider: PlayedModel
) -> None:
    """Fail closed."""
    with ValkeyServer() as server:
        accounts = Secret(server.new_database())
        async with gateway_channel(config, operator_key=KEY, accounts=accounts) as channel:
            await ask(channel)
            server.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel)
            asked_meanwhile = len(provider.bodies)
            server.start()
            again = await ask(channel)

    error = received(caught.value)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_LEDGER_UNAVAILABLE"
    assert error.retry_after_s is not None
    assert (asked_meanwhile, again.text) == (1, "hello there")


async def test_a_run_goes_on_from_the_ledger_where_the_store_has_lost_it(
    config: Path, provider: PlayedModel, valkey: ValkeyServer
) -> None:
    """A new gateway on an empty server: durable spend stays in SQL."""
    for wanted in (COST, 0):
        accounts = Secret(valkey.new_database())
        async with gateway_channel(config, operator_key=KEY, accounts=accounts) as channel:
            reason = "ERROR_REASON_RUN_LIMIT_EXCEEDED"
            cost = await cost_of(channel, reason, cost_usd_nanos_max=COST + WORST - 1)
        assert cost == wanted


async def test_a_call_that_is_cancelled_at_any_step_leaves_no_reservation(
    config: Path, provider: PlayedModel, stores: tuple[str, str]
) -> None:
    database_url, accounts = stores
    settings = {"database_url": Secret(database_url), "accounts": Secret(accounts)}
    async with gateway_channel(config, credentials=None, operator_key=KEY, **settings) as channel:
        await set_quota(channel, concurrency_max=4, cost_usd_nanos_max=10**12)
        for number in range(40):
            call = asyncio.create_task(ask(channel, run=f"runs/{number % 3}"))
            await asyncio.wait({call}, timeout=number * 0.0005)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

        async def is_free() -> bool:
            return (await used(channel))[1] == 0

        await eventually(is_free)
        assert (await ask(channel)).text == "hello there"
        assert (await used(channel))[0] <= len(provider.bodies) * COST

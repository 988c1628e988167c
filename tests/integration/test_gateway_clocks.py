"""Gateways that share a ledger, on machines whose clocks differ by an hour."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub

from common.database import Database
from llm_gateway.ledger.shared_clock import SharedClock
from llm_gateway.ledger.tables import MIGRATIONS
from tests.support.gateway import KEY, config_file, generate, metadata
from tests.support.gateway_process import GatewayProcess
from tests.support.played_model import Gate, PlayedModel, answers
from tests.support.postgres import PostgresServer

TIMEOUT_S = 60.0
HOUR_S = 3600
OPERATOR = (("fathom-operator-key", KEY.reveal()),)


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


def with_clock(gateway: GatewayProcess, ahead_s: int) -> GatewayProcess:
    """Have a gateway that is not yet started live in another time."""
    folder = gateway.folder / f"clock{ahead_s}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import time\nwall = time.time\ntime.time = lambda: wall() + {ahead_s}\n"
    )
    path = gateway.environ["PYTHONPATH"]
    gateway.environ["PYTHONPATH"] = os.pathsep.join((str(folder), path))
    return gateway


async def ask(gateway: GatewayProcess, request_id: str) -> Generation:
    request: pb2.GenerateRequest = generate(f"hello {request_id}", output_tokens_max=3)
    request.call.request_id = request_id
    response = await gateway.stub.Generate(request, metadata=metadata(), timeout=TIMEOUT_S)
    generation: Generation = response.generation
    return generation


async def booked(gateway: GatewayProcess) -> int:
    request = quota_pb2.GetUsageRequest(parent="tenants/acme")
    request.start_time.FromSeconds(0)
    stub = QuotaServiceStub(gateway.channel)
    response = await stub.GetUsage(request, metadata=OPERATOR, timeout=TIMEOUT_S)
    return sum(row.usage.cost_usd_nanos for row in response.rows)


async def test_a_call_of_a_gateway_with_another_clock_is_waited_for(
    tmp_path: Path,
    provider: PlayedModel,
    postgres: PostgresServer,
) -> None:
    """Its lease looked long over: its call was booked at worst, and made and paid once more."""
    config = config_file(tmp_path / "c.toml", [provider.base_url])
    url = postgres.new_database()
    gate = Gate(answers("hello there"))
    provider.plan(gate)
    async with (
        with_clock(GatewayProcess(config, url, lease_s=60), -HOUR_S) as one,
        GatewayProcess(config, url, lease_s=60) as other,
    ):
        call = asyncio.create_task(ask(one, "a"))
        await gate.reached.wait()
        repeat = asyncio.create_task(ask(other, "a"))
        between = [await ask(other, f"b{number}") for number in range(3)]
        gate.opened.set()
        first, second = await asyncio.gather(call, repeat)
        spent = await booked(other)

    assert len(provider.bodies) == 1 + len(between)
    assert first.text == second.text == "hello there"
    assert spent == sum(each.usage.cost_usd_nanos for each in (first, *between)) > 0


async def test_the_shared_clock_is_the_databases(postgres: PostgresServer) -> None:
    """A machine's own clock counts for nothing, whatever it says."""
    database = await Database.open(postgres.new_database(), MIGRATIONS)
    clocks = [
        SharedClock(database, steady=lambda: 0.0, wall=lambda: 7.0),
        SharedClock(database, steady=lambda: 1e9, wall=lambda: 8.0),
    ]
    for clock in clocks:
        async with clock.running(HOUR_S):
            pass
    await database.close()

    one, other = (clock.now() for clock in clocks)
    assert 0 <= other - one < TIMEOUT_S
    assert one > 1_700_000_000


async def test_in_sqlite_the_clock_is_the_machines(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/x.sqlite", MIGRATIONS)
    clock = SharedClock(database, wall=lambda: 7.0)
    async with clock.running(HOUR_S):
        assert clock.now() == 7.0
    await database.close()


async def test_an_answer_that_was_long_on_its_way_tells_no_time(postgres: PostgresServer) -> None:
    """But for the first one: half of its way is how wrong it may be."""
    steady = iter([0.0, 10.0, 0.0, 10.0, 0.0, 0.0])
    database = await Database.open(postgres.new_database(), MIGRATIONS)
    clock = SharedClock(database, steady=lambda: next(steady))
    ahead = []
    for _ in range(2):
        await clock.look()
        ahead.append(clock._ahead_s)
    await database.close()

    assert ahead[0] == ahead[1] is not None

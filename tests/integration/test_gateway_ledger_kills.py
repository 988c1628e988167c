"""What survives a gateway that is killed, at each step of a call and at any moment of many."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1 import quota_service_pb2 as quota_pb2
from fathom.gateway.v1.generation_pb2 import Generation
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from fathom_demo.scripted_model import ChatRequest
from sqlalchemy import create_engine, make_url, text

from common.errors import received
from tests.support.eventually import eventually
from tests.support.gateway import KEY, config_file, generate, metadata
from tests.support.gateway_process import GatewayProcess
from tests.support.played_model import Gate, PlayedModel, answers, sends

TIMEOUT_S = 40
OPERATOR = (("fathom-operator-key", KEY.reveal()),)
COST = 10 * 1_000 + 3 * 2_000
"""Of one usual call, in nano-dollars."""
WORST = (len("hello") + 16) * 1_000 + 3 * 2_000
"""What is held for it: a token a byte, the template's and all of the answer."""


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture
def config(provider: PlayedModel, tmp_path: Path) -> Path:
    return config_file(tmp_path / "c.toml", [provider.base_url])


def asked(request_id: str = "a") -> pb2.GenerateRequest:
    request = generate("hello", output_tokens_max=3)
    request.call.request_id = request_id
    return request


async def ask(
    gateway: GatewayProcess, request: pb2.GenerateRequest | None = None, **claims: Any
) -> Generation:
    response = await gateway.stub.Generate(
        request or asked(), metadata=metadata(**claims), timeout=TIMEOUT_S
    )
    generation: Generation = response.generation
    return generation


async def booked(gateway: GatewayProcess) -> int:
    """Return what the tenant has spent by the books."""
    request = quota_pb2.GetUsageRequest(parent="tenants/acme")
    request.start_time.FromSeconds(0)
    stub = QuotaServiceStub(gateway.channel)
    response = await stub.GetUsage(request, metadata=OPERATOR, timeout=TIMEOUT_S)
    return sum(row.usage.cost_usd_nanos for row in response.rows)


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing to the ledger while the block lasts."""
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    engine = (
        create_engine(parsed.set(drivername="sqlite"), connect_args={"timeout": TIMEOUT_S})
        if is_sqlite
        else create_engine(parsed)
    )
    lock = "BEGIN IMMEDIATE" if is_sqlite else "LOCK TABLE calls, exchanges IN EXCLUSIVE MODE"
    with engine.connect() as connection:
        connection.execute(text(lock))
        yield
        connection.rollback()
    engine.dispose()


async def progress(known: dict[str, str], calls: list[asyncio.Task[None]], number: int) -> None:
    """Wait until so many more answers are known, or the calls have ended without them."""
    wanted = len(known) + number
    await eventually(
        lambda: len(known) >= wanted or all(call.done() for call in calls),
        within_s=TIMEOUT_S,
        every_s=0.001,
    )


async def killed(gateway: GatewayProcess, call: asyncio.Task[Generation]) -> None:
    await gateway.kill()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call


async def test_killed_before_the_hold_is_written_nothing_was_asked_or_booked(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    """The provider is never asked before the ledger says so."""
    async with GatewayProcess(config, database_url) as gateway:
        await ask(gateway, asked("warm"))
        with locked(database_url):
            call = asyncio.create_task(ask(gateway))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.3)
            assert not call.done()
            await killed(gateway, call)
    asked_before = len(provider.bodies)

    async with GatewayProcess(config, database_url) as gateway:
        assert (await ask(gateway)).attempts == 1
        assert await booked(gateway) == 2 * COST

    assert asked_before == 1


async def test_killed_while_the_provider_works_the_worst_case_is_booked(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    async with GatewayProcess(config, database_url) as gateway:
        call = asyncio.create_task(ask(gateway))
        await gate.reached.wait()
        await killed(gateway, call)
    gate.opened.set()

    async with GatewayProcess(config, database_url) as gateway:
        again = await ask(gateway)
        assert await booked(gateway) == WORST + COST

    assert (again.attempts, again.text) == (1, "hello there")
    assert (again.usage.cost_usd_nanos, again.usage.estimated) == (COST, False)
    recorded = again.recorded_usage
    assert (recorded.cost_usd_nanos, recorded.calls, recorded.estimated) == (WORST + COST, 1, True)


async def test_killed_before_the_answer_is_written_the_worst_case_is_booked(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    """The provider has answered, and nobody knows."""
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    async with GatewayProcess(config, database_url) as gateway:
        call = asyncio.create_task(ask(gateway))
        await gate.reached.wait()
        with locked(database_url):
            gate.opened.set()
            await eventually(lambda: provider.under_way == 0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.3)
            assert not call.done(), "no answer before it is recorded"
            await killed(gateway, call)

    async with GatewayProcess(config, database_url) as gateway:
        assert (await ask(gateway)).text == "hello there"
        assert await booked(gateway) == WORST + COST


async def test_killed_after_the_answer_it_is_not_paid_again(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    async with GatewayProcess(config, database_url) as gateway:
        first = await ask(gateway)
        await gateway.kill()

    async with GatewayProcess(config, database_url) as gateway:
        again = await ask(gateway)
        assert await booked(gateway) == COST

    assert (again.attempts, again.text) == (0, first.text)
    assert (again.usage.cost_usd_nanos, again.recorded_usage) == (0, first.usage)
    assert len(provider.bodies) == 1


async def test_killed_in_the_second_attempt_the_first_is_booked_as_it_was(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    broken = sends(b'{"usage": {"prompt_tokens": 10, "completion_tokens": 3}}')
    gate = Gate(answers("never seen"))
    provider.plan(broken, gate)
    async with GatewayProcess(config, database_url) as gateway:
        call = asyncio.create_task(ask(gateway))
        await gate.reached.wait()
        await killed(gateway, call)

    async with GatewayProcess(config, database_url) as gateway:
        again = await ask(gateway)
        assert await booked(gateway) == COST + WORST + COST

    assert again.recorded_usage.cost_usd_nanos == COST + WORST + COST


async def test_what_a_dead_gateway_held_counts_against_the_run(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    """Also for other calls than the one it made; while it may still live they wait."""
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    limits = {"cost_usd_nanos_max": 2 * WORST - 1}
    async with GatewayProcess(config, database_url, lease_s=3) as gateway:
        call = asyncio.create_task(ask(gateway, asked(), **limits))
        await gate.reached.wait()
        await killed(gateway, call)

    async with GatewayProcess(config, database_url, lease_s=3) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(gateway, asked("another"), **limits)

    error = received(caught.value)
    assert error.reason_name == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    assert error.metadata["spent"] == str(WORST)
    assert len(provider.bodies) == 1


async def test_a_dead_gateways_calls_are_booked_without_a_repeat(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    async with GatewayProcess(config, database_url) as gateway:
        call = asyncio.create_task(ask(gateway))
        await gate.reached.wait()
        await killed(gateway, call)

    async with GatewayProcess(config, database_url) as gateway:

        async def is_booked() -> bool:
            return await booked(gateway) == WORST

        await eventually(is_booked, within_s=20)


@pytest.mark.parametrize("is_beside", [False, True])
async def test_a_gateway_that_is_seen_to_be_dead_is_not_waited_for(
    is_beside: bool, config: Path, provider: PlayedModel, database_url: str
) -> None:
    """One that is started again, or another on the machine, sees at once that the lease is vain."""
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    hour_s = 3_600
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(GatewayProcess(config, database_url, lease_s=hour_s))
        if is_beside:
            other = GatewayProcess(config, database_url, lease_s=hour_s)
            await stack.enter_async_context(other)
        call = asyncio.create_task(ask(one))
        await gate.reached.wait()
        await killed(one, call)
        if not is_beside:
            other = GatewayProcess(config, database_url, lease_s=hour_s)
            await stack.enter_async_context(other)

        assert (await ask(other)).text == "hello there"
        assert await booked(other) == WORST + COST


async def test_killed_with_two_attempts_under_way_both_are_booked_at_worst(
    provider: PlayedModel, database_url: str, tmp_path: Path
) -> None:
    """A hedged call holds for two exchanges, and a row for one."""
    async with PlayedModel() as second:
        file = config_file(tmp_path / "c.toml", [provider.base_url, second.base_url])
        file.write_text(f"{file.read_text()}\n[routing]\nhedge_share = 1.0\n")
        gates = Gate(answers("never seen")), Gate(answers("never seen"))
        async with GatewayProcess(file, database_url) as gateway:
            for number in range(20):  # so many say how long is usual
                await ask(gateway, asked(f"warm {number}"))
            before = await booked(gateway)
            provider.plan(gates[0])
            second.plan(gates[1])
            call = asyncio.create_task(ask(gateway))
            for gate in gates:
                await gate.reached.wait()
            await killed(gateway, call)
        async with GatewayProcess(file, database_url) as gateway:
            await ask(gateway)
            spent = await booked(gateway) - before

    assert spent == 2 * WORST + COST


async def test_two_gateways_make_a_hundred_identical_calls_once(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    async with (
        GatewayProcess(config, database_url, lease_s=15) as one,
        GatewayProcess(config, database_url, lease_s=15) as other,
    ):
        generations = await asyncio.gather(
            *(ask(gateway) for gateway in (one, other) for _ in range(50))
        )

    assert len(provider.bodies) == 1
    assert {each.text for each in generations} == {"hello there"}
    assert sum(each.usage.cost_usd_nanos for each in generations) == COST


async def test_a_gateway_takes_over_from_one_that_is_killed_beside_it(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    gate = Gate(answers("never seen"))
    provider.plan(gate)
    async with (
        GatewayProcess(config, database_url) as one,
        GatewayProcess(config, database_url) as other,
    ):
        call = asyncio.create_task(ask(one))
        await gate.reached.wait()
        repeat = asyncio.create_task(ask(other))
        await killed(one, call)

        assert (await repeat).text == "hello there"
        assert await booked(other) == WORST + COST


async def test_kills_at_any_moment_lose_nothing_and_overspend_nothing(
    config: Path, provider: PlayedModel, database_url: str
) -> None:
    """Whoever got an answer gets the same one again for nothing, and neither what providers bill
    nor what is booked passes the limit."""
    given: Counter[str] = Counter()

    async def numbered(http: web.Request, request: ChatRequest) -> web.StreamResponse:
        """Answer in words that no other answer has."""
        given["all"] += 1
        return await answers(f"answer {given['all']}")(http, request)

    provider.usual = numbered
    moments = random.Random(1)
    limit = 50 * WORST
    known: dict[str, str] = {}

    async def ask_for(gateway: GatewayProcess, request_id: str) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            got = await ask(gateway, asked(request_id), cost_usd_nanos_max=limit)
            assert known.setdefault(request_id, got.text) == got.text

    ids: list[str] = []
    for _ in range(3):
        ids += [f"call {len(ids) + number}" for number in range(12)]
        async with GatewayProcess(config, database_url) as gateway:
            calls = [asyncio.create_task(ask_for(gateway, each)) for each in ids]
            await progress(known, calls, moments.randrange(1, 8))
            await gateway.kill()
            await asyncio.gather(*calls)
    async with GatewayProcess(config, database_url) as gateway:
        await asyncio.gather(*(ask_for(gateway, each) for each in ids))
        spent = await booked(gateway)

    assert len(provider.bodies) * COST <= spent <= limit
    assert len(known) > 12

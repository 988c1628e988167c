"""Second attempts for slow calls: who answers, and that both are paid."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb2
from fathom.gateway.v1.generation_pb2 import Generation

from llm_gateway.ledger.usage import UsageQuery
from tests.support.eventually import eventually
from tests.support.gateway import (
    config_file,
    generate,
    metadata,
    opened_gateway,
    stream_generate,
)
from tests.support.played_model import Gate, PlayedModel, answers, fails

KNOWN = 20
"""Answers after which a deployment's usual time is known."""
COST = 10 * 1000 + 3 * 2000


class Scene:
    """A gateway that may hedge, with a usual deployment `m0` and another, `m1`."""

    def __init__(self, stub: Any, opened: Any, first: PlayedModel, second: PlayedModel) -> None:
        self.stub = stub
        self.opened = opened
        self.first = first
        self.second = second

    async def ask(self, request_id: str = "") -> Generation:
        request = generate()
        request.call.request_id = request_id
        response = await self.stub.Generate(request, metadata=metadata(), timeout=30)
        generation: Generation = response.generation
        return generation

    async def warm_up(self, calls: int = KNOWN) -> None:
        """Let the gateway learn how long an answer of `m0` takes."""
        for _ in range(calls):
            assert (await self.ask()).model == "models/m0"

    async def charged(self) -> tuple[int, int]:
        """Return what the ledger has: nano-dollars, and answered calls."""
        query = UsageQuery(tenant="acme", dimensions=(), start_us=0, end_us=int(4e15))
        (row,) = await self.opened.usage.sums(query, offset=0, size=10)
        return row.spend.cost_usd_nanos, row.answers


@contextlib.asynccontextmanager
async def scene(folder: Path, *, share: float = 1.0, **settings: Any) -> AsyncIterator[Scene]:
    usual = answers("first", delay_s=0.02)
    async with PlayedModel(usual) as first, PlayedModel(answers("second")) as second:
        path = config_file(folder / "c.toml", [first.base_url, second.base_url])
        path.write_text(f"{path.read_text()}\n[routing]\nhedge_share = {share}\n")
        async with opened_gateway(path, **settings) as (stub, opened):
            yield Scene(stub, opened, first, second)


async def test_a_slow_call_is_answered_by_another_deployment_and_both_are_paid(
    tmp_path: Path,
) -> None:
    """The slow one is left to end, so what it really took reaches the ledger."""
    async with scene(tmp_path) as played:
        await played.warm_up()
        second_calls = len(played.second.bodies)
        before, answered = await played.charged()
        gate = Gate(answers("too late"))
        played.first.plan(gate)
        answer = await played.ask()
        gate.opened.set()

        async def is_settled() -> bool:
            return await played.charged() == (before + 2 * COST, answered + 1)

        await eventually(is_settled)

    assert (answer.text, answer.model, answer.attempts) == ("second", "models/m1", 2)
    assert (answer.usage.cost_usd_nanos, answer.usage.estimated) == (2 * COST, True)
    assert len(played.second.bodies) == second_calls + 1


async def test_a_repeat_gets_the_answer_that_was_given_and_not_the_slower_one(
    tmp_path: Path,
) -> None:
    """Both attempts end with an answer; the call has one."""
    async with scene(tmp_path) as played:
        await played.warm_up()
        before, _ = await played.charged()
        gate = Gate(answers("too late"))
        played.first.plan(gate)
        assert (await played.ask("once")).text == "second"
        gate.opened.set()

        async def is_settled() -> bool:
            return (await played.charged())[0] == before + 2 * COST

        await eventually(is_settled)
        again = await played.ask("once")

    assert (again.text, again.attempts) == ("second", 0)


async def test_a_slow_one_that_answers_first_after_all_is_taken(tmp_path: Path) -> None:
    async with scene(tmp_path) as played:
        await played.warm_up()
        gates = Gate(answers("slow")), Gate(answers("slower"))
        played.first.plan(gates[0])
        played.second.plan(gates[1])
        asking = asyncio.create_task(played.ask())
        await gates[1].reached.wait()
        gates[0].opened.set()
        answer = await asking

    assert (answer.text, answer.model) == ("slow", "models/m0")


async def test_a_second_attempt_that_fails_is_no_failure_of_the_call(tmp_path: Path) -> None:
    """It was only a try; the first is still under way."""
    async with scene(tmp_path) as played:
        await played.warm_up()
        gate = Gate(answers("slow"))
        played.first.plan(gate)
        played.second.plan(fails(400))
        asking = asyncio.create_task(played.ask())
        await eventually(lambda: len(played.second.bodies) == 1)
        gate.opened.set()
        answer = await asking

    assert (answer.text, answer.usage.cost_usd_nanos) == ("slow", COST)


async def test_a_first_attempt_that_fails_slowly_leaves_the_call_to_the_second(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as played:
        await played.warm_up()
        gates = Gate(fails(500)), Gate(answers("second"))
        played.first.plan(gates[0])
        played.second.plan(gates[1])
        asking = asyncio.create_task(played.ask())
        await gates[1].reached.wait()
        gates[0].opened.set()
        await eventually(lambda: played.first.under_way == 0)
        gates[1].opened.set()

        assert (await asking).model == "models/m1"


async def no_second_attempt(played: Scene, asking: asyncio.Task[Any], gate: Gate) -> None:
    """Check that a call that has waited many times the usual time was not asked again."""
    await gate.reached.wait()
    until = time.monotonic() + 0.3
    await eventually(lambda: time.monotonic() > until)
    assert played.second.bodies == []
    gate.opened.set()
    await asking


@pytest.mark.parametrize(("share", "calls"), [(0.0, KNOWN), (0.01, KNOWN), (1.0, KNOWN - 2)])
async def test_there_is_no_second_attempt_without_a_share_or_before_the_usual_time_is_known(
    share: float, calls: int, tmp_path: Path
) -> None:
    """A share of a hundredth is used up for long after twenty calls."""
    async with scene(tmp_path, share=share) as played:
        await played.warm_up(calls)
        gate = Gate(answers("slow"))
        played.first.plan(gate)
        await no_second_attempt(played, asyncio.create_task(played.ask()), gate)


async def test_a_stream_is_never_asked_twice(tmp_path: Path) -> None:
    """Its reader has the first one's pieces already."""
    async with scene(tmp_path) as played:
        await played.warm_up()
        gate = Gate(answers("slow"))
        played.first.plan(gate)

        async def read() -> list[pb2.StreamGenerateResponse]:
            call = played.stub.StreamGenerate(stream_generate(), metadata=metadata(), timeout=30)
            return [response async for response in call]

        await no_second_attempt(played, asyncio.create_task(read()), gate)


async def test_a_caller_who_goes_away_leaves_neither_attempt_running(tmp_path: Path) -> None:
    """Both are drained for a bounded time, then broken off."""
    async with scene(tmp_path, abandoned_drain_s=0.1) as played:
        await played.warm_up()
        gates = Gate(answers("never")), Gate(answers("never"))
        played.first.plan(gates[0])
        played.second.plan(gates[1])
        call = played.stub.Generate(generate(), metadata=metadata(), timeout=30)
        await gates[1].reached.wait()
        call.cancel()
        await eventually(lambda: played.first.under_way == played.second.under_way == 0)

        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await played.ask()).text in {"first", "second"}

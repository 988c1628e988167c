"""WatchRun over loopback: every watcher sees the same events, none twice, whenever it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run

from tests.support.fake_gateway import FakeGateway
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator
from tests.support.run_calls import create, failure, get, watch_for


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


async def test_a_watcher_that_comes_back_misses_nothing_and_sees_nothing_twice(
    stack: Stack,
) -> None:
    """Connections break: the sequence is what makes a stream whole again."""
    stack.gateway.replies = ["```repl\nfor n in range(30):\n    llm_query(str(n))\n```", "FINAL(x)"]
    run = await create(stack)

    seen: list[int] = []
    while True:
        request = pb.WatchRunRequest(name=run.name, after_sequence=seen[-1] if seen else 0)
        call = stack.runs.WatchRun(request, timeout=TIMEOUT_S)
        event = RunEvent()
        for _ in range(3):
            response: Any = await call.read()
            if response is grpc.aio.EOF:
                break
            event = response.event
            seen.append(event.sequence)
        call.cancel()
        if event.run_changed.state == Run.STATE_ANSWERED:
            break

    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == 69


async def test_watchers_that_take_several_events_at_once_see_the_same(stack: Stack) -> None:
    stack.gateway.replies = ["```repl\nfor n in range(30):\n    llm_query(str(n))\n```", "FINAL(x)"]
    run = await create(stack)
    alone = await stack.watch(run)

    request = pb.WatchRunRequest(name=run.name, after_sequence=1, joined=True)
    told = [r async for r in stack.runs.WatchRun(request, timeout=TIMEOUT_S)]

    assert [event for r in told for event in (r.event, *r.further)] == alone[1:]
    assert len(told) == 1


async def test_live_watchers_and_late_ones_see_the_same(stack: Stack) -> None:
    stack.gateway.replies = ["```repl\nllm_query('a')\n```", "FINAL(x)"]
    run = await create(stack)

    live = await asyncio.gather(*(stack.watch(run) for _ in range(3)))
    late = await stack.watch(run)

    assert live == [late] * 3


async def test_a_watch_after_the_last_event_ends_at_once(stack: Stack) -> None:
    run = await create(stack)
    events = await stack.watch(run)

    assert await stack.watch(run, after=events[-1].sequence) == []
    assert await stack.watch(run, after=events[-1].sequence + 5) == []
    assert await stack.watch(run, after=events[-2].sequence) == [events[-1]]


async def test_a_negative_sequence_is_refused(stack: Stack) -> None:
    run = await create(stack)
    request = pb.WatchRunRequest(name=run.name, after_sequence=-1)

    error = await failure(stack.runs.WatchRun(request, timeout=TIMEOUT_S))

    assert error.metadata == {"field": "after_sequence"}


async def test_the_stored_run_is_what_its_last_event_says(stack: Stack) -> None:
    run = await create(stack)

    events = await stack.watch(run)

    assert await get(stack, run) == events[-1].run_changed


async def test_draining_ends_a_watch_with_a_reason_to_come_back(tmp_path: Path) -> None:
    """The client resumes by sequence at another server, or the same one later."""
    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(tmp_path, gateway=gateway) as stack:
        run = await create(stack)
        await gateway.asked.wait()
        watching = asyncio.create_task(
            failure(stack.runs.WatchRun(pb.WatchRunRequest(name=run.name), timeout=TIMEOUT_S))
        )
        await watch_for(stack, run, "turn_started")
        await stack.server.__aexit__(None, None, None)
        error = await watching

    assert (error.code, error.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        ErrorReason.ERROR_REASON_DRAINING,
    )

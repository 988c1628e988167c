"""Runs that are stopped before their end, by who asked for them or by a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import ReceivedError
from tests.support.eventually import eventually
from tests.support.fake_gateway import FakeGateway
from tests.support.fake_sandbox import FakeSandbox
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator
from tests.support.run_calls import cancel, create, watch_for


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with orchestrator(tmp_path) as running:
        yield running


HANG = "```repl\nprint('here')\nhang()\n```"


async def test_cancelling_stops_a_waiting_model_call(stack: Stack) -> None:
    stack.gateway.hold.clear()
    run = await create(stack)
    await stack.gateway.asked.wait()

    await cancel(stack, run)
    async with asyncio.timeout(TIMEOUT_S):
        end = (await stack.watch(run))[-1].run_changed

    error = ReceivedError(end.error)
    assert (end.state, error.code, error.reason_name, error.metadata) == (
        Run.STATE_CANCELLED,
        grpc.StatusCode.ABORTED,
        "ERROR_REASON_RUN_CANCELLED",
        {"run": run.name},
    )


async def test_cancelling_stops_a_running_cell_and_deletes_its_session(stack: Stack) -> None:
    stack.gateway.replies = [HANG]
    run = await create(stack)
    await watch_for(stack, run, "cell_started")

    await cancel(stack, run)
    async with asyncio.timeout(TIMEOUT_S):
        *_, cell, end = await stack.watch(run)

    assert cell.cell_finished.ending == "ABORTED"
    assert end.run_changed.state == Run.STATE_CANCELLED
    await eventually(lambda: stack.sandbox.deleted == ["sessions/s1"])


async def test_a_cancelled_run_keeps_what_it_had_found(stack: Stack) -> None:
    """Whoever stops a run that has cost something wants to see what it has got."""
    stack.gateway.replies = ["```repl\nprint('seven of them')\n```", "```repl\nhang()\n```"]
    run = await create(stack)
    await watch_for(stack, run, "cell_finished")

    await cancel(stack, run)
    end = (await stack.watch(run))[-1].run_changed

    assert (end.state, end.found_so_far) == (Run.STATE_CANCELLED, "seven of them")
    assert not end.HasField("answer")


async def test_cancelling_a_run_that_waits_ends_it_without_any_work(tmp_path: Path) -> None:
    gateway = FakeGateway()
    gateway.hold.clear()
    async with orchestrator(tmp_path, gateway=gateway, runs_running_max=1) as stack:
        first = await create(stack)
        second = await create(stack)
        await cancel(stack, second)
        events = await stack.watch(second)
        gateway.hold.set()
        await stack.watch(first)

    assert [event.run_changed.state for event in events] == [
        Run.STATE_QUEUED,
        Run.STATE_CANCELLED,
    ]
    assert len(gateway.requests) == 1


async def test_cancelling_an_ended_run_changes_nothing(stack: Stack) -> None:
    run = await create(stack)
    events = await stack.watch(run)

    answer = await cancel(stack, run)

    assert answer == events[-1].run_changed
    assert await stack.watch(run) == events


async def test_a_restart_lets_what_was_unfinished_go_on_and_keeps_the_rest(tmp_path: Path) -> None:
    """A deployment in the middle of a run costs the run nothing but time."""
    gateway, sandbox = FakeGateway(), FakeSandbox(tmp_path / "objects")
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as stack:
        done = await create(stack)
        before = await stack.watch(done)
        gateway.hold.clear()
        gateway.asked.clear()
        broken = await create(stack)
        await gateway.asked.wait()
        waiting = await create(stack)
    gateway.hold.set()
    async with orchestrator(tmp_path, gateway=gateway, sandbox=sandbox) as stack:
        kept = await stack.watch(done)
        for run in (broken, waiting):
            events = await stack.watch(run)
            assert events[-1].run_changed.state == Run.STATE_ANSWERED
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))

    assert kept == before

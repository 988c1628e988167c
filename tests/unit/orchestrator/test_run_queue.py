"""The queue: order, bounds, and what a run does not inherit from the call that made it."""

from __future__ import annotations

import asyncio

import pytest
from fathom.orchestrator.v1.run_pb2 import RunSpec

from common import deadline
from orchestrator.errors import QueueFullError, RunCancelledError, RunInterruptedError
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_queue import RunQueue
from orchestrator.runs.stop_wish import StopWish


class Drives:
    """Stands for the driver: each run goes on until it is let go or told to stop."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: dict[str, type[BaseException] | None] = {}
        self.let_go = asyncio.Event()
        self.remaining_s: list[float | None] = []

    async def __call__(self, tenant: str, record: RunRecord, stop: StopWish) -> None:
        self.begun.append(record.run_id)
        self.remaining_s.append(deadline.remaining_s())
        work = asyncio.create_task(self.let_go.wait())
        stop.stops(work)
        await asyncio.wait({work})
        error = type(stop.error("")) if work.cancelled() else None
        self.ended[record.run_id] = error


def record() -> RunRecord:
    return RunRecord.queued(RunSpec(question="?"))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_runs_are_driven_at_a_time_than_permitted() -> None:
    drives = Drives()
    runs = [record() for _ in range(5)]

    async with RunQueue(drives, running_max=2, waiting_max=9) as queue:
        for run in runs:
            queue.add("t", run)
        await settle()
        first = list(drives.begun)
        drives.let_go.set()
        await settle()

    assert first == [run.run_id for run in runs[:2]]
    assert drives.begun == [run.run_id for run in runs]


async def test_a_run_does_not_inherit_the_deadline_of_the_call_that_made_it() -> None:
    """CreateRun's deadline is seconds; a run may take hours."""
    drives = Drives()
    drives.let_go.set()
    deadline.set_remaining_s(1.0)

    async with RunQueue(drives, running_max=1, waiting_max=9) as queue:
        queue.add("t", record())
        queue.add("t", record())
        await settle()

    deadline.set_remaining_s(None)
    assert drives.remaining_s == [None, None]


async def test_cancelling_frees_the_place_for_the_next() -> None:
    drives = Drives()
    first, second = record(), record()

    async with RunQueue(drives, running_max=1, waiting_max=9) as queue:
        queue.add("t", first)
        queue.add("t", second)
        await settle()
        queue.cancel(first.run_id)
        await settle()
        assert drives.begun == [first.run_id, second.run_id]
        assert drives.ended == {first.run_id: RunCancelledError}


async def test_leaving_stops_runs_and_waits_for_them() -> None:
    """Their end is stored before the database is closed."""
    drives = Drives()
    running, waiting = record(), record()

    async with RunQueue(drives, running_max=1, waiting_max=9) as queue:
        queue.add("t", running)
        queue.add("t", waiting)
        await settle()

    assert drives.ended == {
        running.run_id: RunInterruptedError,
        waiting.run_id: RunInterruptedError,
    }


async def test_the_first_wish_to_stop_counts() -> None:
    drives = Drives()
    run = record()

    async with RunQueue(drives, running_max=1, waiting_max=9) as queue:
        queue.add("t", run)
        await settle()
        queue.cancel(run.run_id)

    assert drives.ended == {run.run_id: RunCancelledError}


async def test_only_waiting_runs_count_against_the_room() -> None:
    drives = Drives()

    async with RunQueue(drives, running_max=1, waiting_max=1) as queue:
        queue.add("t", record())
        queue.check_room()
        queue.add("t", record())
        with pytest.raises(QueueFullError):
            queue.check_room()
        drives.let_go.set()


async def test_cancelling_an_unknown_run_does_nothing() -> None:
    async with RunQueue(Drives(), running_max=1, waiting_max=1) as queue:
        queue.cancel("unknown")

"""The queue: order, bounds, fairness, letting go, and what a run does not inherit from the call
that made it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
import types
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import select, update

from common import deadline
from common.errors import ReceivedError
from orchestrator import tables
from orchestrator.durable.turnstile import Waiting, choose
from orchestrator.errors import QueueFullError
from orchestrator.runs import queue
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.steps import Steps
from orchestrator.runs.queue import Drive
from orchestrator.runs.stop_wish import StopWish
from tests.support.durable import durable, waiting_run
from tests.support.eventually import eventually
from tests.support.plain_engine import PlainEngine


@dataclasses.dataclass
class Drives:
    """Stands for the driver: each run goes on until it is let go or told to stop."""

    is_deaf: bool = False
    begun: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    remaining_s: list[float | None] = dataclasses.field(default_factory=list)
    let_go: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def over(self, log: EventLog) -> Drive:
        async def drive(_tenant: str, record: RunRecord, stop: StopWish, _steps: Steps) -> None:
            self.begun.append(record.run_id)
            self.remaining_s.append(deadline.remaining_s())
            record.progress.state = Run.STATE_RUNNING
            record.progress.start_time.GetCurrentTime()
            log.append(record, record.state_event())
            work = asyncio.create_task(self.let_go.wait())
            if not self.is_deaf:
                stop.stops(work)
            await asyncio.wait({work})
            if stop.is_left:
                self.left.append(record.run_id)
                return
            record.progress.state = Run.STATE_ANSWERED
            if work.cancelled():
                record.progress.state = Run.STATE_CANCELLED
            log.append(record, record.state_event())

        return drive


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite"


def ids(*records: RunRecord) -> list[str]:
    return [record.run_id for record in records]


async def test_no_more_runs_are_driven_at_a_time_than_permitted(url: str) -> None:
    drives = Drives()
    async with durable(url, drives.over, running_max=2) as parts:
        runs = [await parts.create() for _ in range(5)]
        await eventually(lambda: len(drives.begun) == 2)
        assert len(await parts.turnstile.take(0)) == 0
        drives.let_go.set()
        for run in runs:
            await parts.watch(run)

    assert drives.begun == ids(*runs)


async def test_a_tenant_has_a_bound_of_its_own_over_all_processes(url: str) -> None:
    """Another's runs begin though the first one's wait."""
    drives = Drives()
    async with durable(url, drives.over, running_max=4, per_tenant_max=2) as parts:
        first = [await parts.create("a") for _ in range(4)]
        other = await parts.create("b")
        await eventually(lambda: len(drives.begun) == 3)
        await asyncio.sleep(0)

        assert set(drives.begun) == set(ids(first[0], first[1], other))


async def test_a_child_run_needs_no_place(url: str) -> None:
    """Its parent holds one and waits for it: with a bound, both would wait for ever."""
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        parent = await parts.create()
        child = await parts.create(parent=parent.head.name)
        await eventually(lambda: len(drives.begun) == 2)

        assert set(drives.begun) == set(ids(parent, child))


async def test_a_process_without_places_drives_nothing_and_ends_what_is_to_stop(url: str) -> None:
    """Who only looks runs up must not spend on them by that, not on children either."""
    drives = Drives()
    async with durable(url, drives.over, running_max=0) as parts:
        parent = await parts.create()
        await parts.create(parent=parent.head.name)
        stopped = await parts.create()
        await parts.queue.cancel(stopped.run_id)
        await parts.watch(stopped)

    assert drives.begun == ids(stopped)


async def test_runs_of_a_higher_priority_begin_first(url: str) -> None:
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        running = await parts.create()
        await eventually(lambda: len(drives.begun) == 1)
        low, high = await parts.create(), await parts.create(priority=9)
        drives.let_go.set()
        for run in (low, high):
            await parts.watch(run)

    assert drives.begun == ids(running, high, low)


def test_places_go_round_between_tenants_and_not_between_runs() -> None:
    """A tenant with a thousand waiting runs must not keep one with two of them waiting."""
    waiting = [Waiting(f"1{n:03}", "many", 1) for n in range(1000)]
    waiting += [Waiting("2000", "few", 1), Waiting("2001", "few", 1)]

    chosen = choose(waiting, {"many": 1}, free=4, per_tenant_max=8)

    assert chosen == ["2000", "1000", "2001", "1001"]


def test_a_tenant_at_its_bound_leaves_its_places_to_others() -> None:
    waiting = [Waiting("1", "a", 1), Waiting("2", "b", 1), Waiting("3", "b", 1)]

    assert choose(waiting, {"a": 2}, free=9, per_tenant_max=2) == ["2", "3"]
    assert choose(waiting, {"a": 1, "b": 1}, free=9, per_tenant_max=2) == ["1", "2"]


def test_runs_without_a_place_are_chosen_where_none_is_free() -> None:
    waiting = [Waiting("1", "a", 1), Waiting("2", "a", 0)]

    assert choose(waiting, {"a": 9}, free=0, per_tenant_max=1) == ["2"]


async def test_a_run_does_not_inherit_the_deadline_of_the_call_that_made_it(url: str) -> None:
    """CreateRun's deadline is seconds; a run may take hours."""
    drives = Drives()
    drives.let_go.set()
    async with durable(url, drives.over, running_max=1) as parts:
        deadline.set_remaining_s(1.0)
        runs = [await parts.create(), await parts.create()]
        for run in runs:
            await parts.watch(run)
    deadline.set_remaining_s(None)

    assert drives.remaining_s == [None, None]


async def test_cancelling_frees_the_place_for_the_next(url: str) -> None:
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        first, second = await parts.create(), await parts.create()
        await eventually(lambda: drives.begun == ids(first))

        await parts.queue.cancel(first.run_id)
        await eventually(lambda: drives.begun == ids(first, second))

        assert (await parts.run(first)).state == Run.STATE_CANCELLED


async def test_a_run_that_waits_is_cancelled_without_waiting_for_a_place(url: str) -> None:
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        await parts.create()
        waiting = await parts.create()

        await parts.queue.cancel(waiting.run_id)
        await parts.watch(waiting)

        assert (await parts.run(waiting)).state == Run.STATE_CANCELLED


async def test_a_wish_to_stop_outlives_the_process(url: str) -> None:
    """A caller that was told that the run will stop is not to find it going on after a restart."""
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        run = await parts.create()
        await eventually(lambda: drives.begun == ids(run))
        await parts.turnstile.wish_stop(run.run_id)
        parts.queue.leave_all()
    async with durable(url, drives.over, running_max=1) as parts:
        await parts.watch(run)

        assert (await parts.run(run)).state == Run.STATE_CANCELLED


async def test_leaving_lets_runs_go_on_at_the_next_start(url: str) -> None:
    """A restart ends nothing: what ran goes on, before what waited."""
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        running = await parts.create()
        await eventually(lambda: drives.begun == ids(running))
        waiting = await parts.create(priority=9)
    drives.let_go.set()
    async with durable(url, drives.over, running_max=1) as parts:
        for run in (running, waiting):
            await parts.watch(run)
            assert (await parts.run(run)).state == Run.STATE_ANSWERED

    assert drives.left == ids(running)
    assert drives.begun == ids(running, running, waiting)


async def test_a_run_that_comes_back_is_driven_once_its_former_driving_has_ended(url: str) -> None:
    """A process that lost its runs with its lease can take one up again while it still lets go of
    it: two drivings of one run in one process would end each other's."""
    drives = Drives(is_deaf=True)
    async with durable(url, drives.over) as process:
        record = await process.create()
        await eventually(lambda: len(drives.begun) == 1)
        async with process.database.writing() as connection:
            await connection.execute(update(tables.runs).values(owner=None))
        process.queue.wake()

        async def is_taken_again() -> bool:
            async with process.database.reading() as connection:
                return (await connection.execute(select(tables.runs.c.epoch))).scalar() == 2

        await eventually(is_taken_again)
        assert drives.begun == [record.run_id]
        drives.let_go.set()
        await process.watch(record)
        ended = await process.run(record)

    assert drives.begun == [record.run_id] * 2
    assert drives.left == [record.run_id]
    assert ended.state == Run.STATE_ANSWERED


async def test_a_run_that_is_cut_off_with_its_queue_is_heard_of(url: str) -> None:
    """What nobody has heard of is logged as an error of ours when it is thrown away."""
    unheard: list[str] = []
    drives = Drives()
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: unheard.append(context["message"])
    )

    with pytest.raises(ExceptionGroup):
        async with durable(url, drives.over) as parts:
            await parts.create()
            await eventually(lambda: len(drives.begun) == 1)

            async def fail() -> None:
                raise OSError("a fault of the queue's own")

            parts.queue._tasks.create_task(fail())
            await asyncio.Event().wait()
    gc.collect()

    assert not unheard


async def test_a_run_that_is_lost_before_it_begins_is_let_go_of_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever went on asking the engine for it would take it away from its new owner."""
    asked: list[str] = []

    async def carry_out(_engine: object, run_id: str, *_: object, is_first: bool) -> None:
        asked.append(run_id)
        await asyncio.Event().wait()

    monkeypatch.setattr(PlainEngine, "carry_out", carry_out)
    async with durable(url, Drives().over) as parts:
        run = await parts.create()
        await eventually(lambda: asked == ids(run))

        parts.queue.leave(run.run_id)

        await eventually(lambda: asked == ids(run, run))


async def test_only_waiting_runs_count_against_the_room(url: str) -> None:
    drives = Drives()
    async with durable(url, drives.over, running_max=1, waiting_max=1) as parts:
        await parts.create()
        await eventually(lambda: len(drives.begun) == 1)
        async with parts.queue.room("t"):
            pass
        await parts.create()
        with pytest.raises(QueueFullError):
            await parts.queue.room("t").__aenter__()


async def test_runs_that_are_being_stored_have_their_room(url: str) -> None:
    """Or as many as come at once would pass the bound together."""
    async with durable(url, Drives().over, running_max=1, waiting_max_per_tenant=1) as parts:
        async with parts.queue.room("t"), parts.queue.room("another"):
            with pytest.raises(QueueFullError) as caught:
                await parts.queue.room("t").__aenter__()
        async with parts.queue.room("t"):
            pass

    assert caught.value.metadata == {"limit": "1", "scope": "tenant"}


async def test_cancelling_an_unknown_run_does_nothing(url: str) -> None:
    async with durable(url, Drives().over) as parts:
        await parts.queue.cancel("unknown")


async def test_a_run_that_outlives_its_wall_time_by_far_is_ended(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever hangs in its driving, a run that lasts for ever is impossible."""
    monkeypatch.setattr(queue, "_OVERDUE_S", 0.0)
    monkeypatch.setattr(queue, "_PATIENCE_S", 0.0)
    drives = Drives(is_deaf=True)
    async with durable(url, drives.over) as parts:
        run = await parts.create(time_s=0.001)
        await parts.watch(run)
        ended = await parts.run(run)

    assert ended.state == Run.STATE_FAILED
    assert ReceivedError(ended.error).reason_name == "ERROR_REASON_RUN_OVERDUE"


async def test_a_wall_clock_that_is_set_ends_no_run(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that wakes up, or whose clock is corrected, has not driven its runs that long."""
    drives = Drives()
    async with durable(url, drives.over, with_upkeep=False) as parts:
        run = await parts.create(time_s=60.0)
        await eventually(lambda: drives.begun == ids(run))
        parts.queue.end_overdue()
        clock = types.SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 1e6)
        monkeypatch.setattr(queue, "time", clock)
        parts.queue.end_overdue()
        drives.let_go.set()
        await parts.watch(run)

        assert (await parts.run(run)).state == Run.STATE_ANSWERED


async def test_a_run_whose_time_ran_out_while_nobody_drove_it_waits_for_no_place(url: str) -> None:
    """Its callers wait for an end, which is all that is left to do."""
    drives = Drives()
    async with durable(url, drives.over, running_max=1) as parts:
        busy = await parts.create()
        await eventually(lambda: drives.begun == ids(busy))
        overdue, in_time = waiting_run(time_s=1.0), waiting_run(time_s=3600.0)
        for record in (overdue, in_time):
            record.progress.state = Run.STATE_RUNNING
            record.progress.start_time.FromSeconds(int(time.time()) - 10)
            await parts.runs.create("t", record, record.state_event(), None)

        await eventually(lambda: drives.begun == ids(busy, overdue))

        assert in_time.run_id not in drives.begun
        drives.let_go.set()
        await parts.watch(in_time)


async def test_a_run_within_its_wall_time_is_left_alone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_OVERDUE_S", 0.0)
    drives = Drives()
    async with durable(url, drives.over) as parts:
        run = await parts.create(time_s=60.0)
        await eventually(lambda: drives.begun == ids(run))
        parts.queue.end_overdue()
        drives.let_go.set()
        await parts.watch(run)

        assert (await parts.run(run)).state == Run.STATE_ANSWERED


async def test_a_driver_that_does_not_hear_a_cancellation_is_abandoned(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_S", 0.0)
    drives = Drives(is_deaf=True)
    async with durable(url, drives.over) as parts:
        run = await parts.create()
        await eventually(lambda: drives.begun == ids(run))
        await parts.queue.cancel(run.run_id)
        await parts.watch(run)

        assert (await parts.run(run)).state == Run.STATE_CANCELLED


async def test_a_driver_that_fails_is_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it failed of may be gone; the log says where to go on."""
    monkeypatch.setattr(queue, "_PAUSE_S", 0.01)
    drives, failures = Drives(), 2
    drives.let_go.set()

    def over(log: EventLog) -> Drive:
        drive = drives.over(log)

        async def failing(tenant: str, record: RunRecord, stop: StopWish, steps: Steps) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError("something of the machine's")
            await drive(tenant, record, stop, steps)

        return failing

    async with durable(url, over) as parts:
        run = await parts.create()
        await parts.watch(run)

        assert (await parts.run(run)).state == Run.STATE_ANSWERED


async def test_a_driver_that_always_fails_does_not_keep_its_run_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that cannot be read fails before a run has begun; its callers wait for an end."""
    monkeypatch.setattr(queue, "_PAUSE_S", 0.01)
    monkeypatch.setattr(queue, "_OVERDUE_S", 0.0)

    def over(_log: EventLog) -> Drive:
        async def failing(*_: object) -> None:
            raise OSError("something of the machine's")

        return failing

    async with durable(url, over) as parts:
        run = await parts.create(time_s=0.1)
        await parts.watch(run)
        ended = await parts.run(run)

    assert ended.state == Run.STATE_FAILED
    assert ReceivedError(ended.error).reason_name == "ERROR_REASON_RUN_OVERDUE"

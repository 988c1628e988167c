"""The log and the store of runs, over a database in a file."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_event_pb2 import Notice, RunEvent, TurnStarted
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import event, update

from common.database import Database, DatabaseAwayError
from common.errors import DrainingError, NotFoundError, RequestIdReusedError
from orchestrator import tables
from orchestrator.runs.log import event_log, store
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import RecordedEvents, turn_started
from orchestrator.runs.log.steps import Work
from orchestrator.runs.log.store import Appendage, RequestKey, RunStore
from orchestrator.tables import MIGRATIONS
from tests.support.eventually import eventually
from tests.support.plain_engine import PlainSteps

TENANT = "t"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite", MIGRATIONS)
    yield opened
    await opened.close()


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    made = EventLog(RunStore(database))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.write())
        yield made
        made.close()


async def begin(database: Database, log: EventLog) -> RunJournal:
    record = RunRecord.queued(RunSpec(question="?"))
    await RunStore(database).create(TENANT, record, record.state_event(), None)
    log.open(record, epoch=0)
    return RunJournal(record, log, RecordedEvents(), PlainSteps())


def run_id(journal: RunJournal) -> str:
    return journal._record.run_id


def end(journal: RunJournal) -> None:
    journal.run.state = Run.STATE_ANSWERED
    journal.add_state()


async def follow(log: EventLog, journal: RunJournal, *, after: int = 0) -> list[int]:
    async with asyncio.timeout(60):
        return [e.sequence async for e in log.follow(run_id(journal), after=after)]


async def test_a_watcher_that_falls_behind_reads_from_the_database(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds the newest events only; a slow client must not make it grow."""
    monkeypatch.setattr(event_log, "_RECENT_EVENTS", 10)
    monkeypatch.setattr(event_log, "_PAGE_EVENTS", 7)
    journal = await begin(database, log)
    slow = log.follow(run_id(journal), after=0)
    seen = [(await anext(slow)).sequence]
    for n in range(100):
        journal.notice("N", str(n))
    end(journal)

    seen += [e.sequence async for e in slow]

    assert seen == list(range(1, 103))
    assert await follow(log, journal, after=50) == list(range(51, 103))


async def test_a_watcher_of_a_run_that_is_driven_here_reads_the_database_once(
    database: Database, log: EventLog
) -> None:
    """What is stored meanwhile is in memory, the run's last event too."""
    reads = 0

    def count(*_: object) -> None:
        nonlocal reads
        reads += 1

    journal = await begin(database, log)
    watching = log.follow(run_id(journal), after=0)
    assert (await anext(watching)).sequence == 1
    event.listen(database._engine.sync_engine, "before_cursor_execute", count)
    journal.notice("N", "1")
    assert (await anext(watching)).sequence == 2
    end(journal)

    assert [each.sequence async for each in watching] == [3]
    assert not reads


async def test_whoever_drives_a_run_goes_on_before_its_watchers_are_told(
    database: Database, log: EventLog
) -> None:
    """To tell watchers takes a while, and the run would wait for it in each of its steps."""
    journal = await begin(database, log)
    told: list[str] = []

    async def watch() -> None:
        watched = log.follow(run_id(journal), after=1)
        told.append(f"watcher {(await anext(watched)).sequence}")
        told.append(f"watcher {(await anext(watched)).sequence}")

    watching = asyncio.create_task(watch())
    await eventually(lambda: run_id(journal) in log._bells)
    journal.notice("N", "")
    await log.stored(run_id(journal))
    told.append("driver 2")
    await eventually(lambda: len(told) == 2)
    end(journal)
    await log.stored(run_id(journal))
    told.append("driver 3")
    await watching

    assert told == ["driver 2", "watcher 2", "driver 3", "watcher 3"]


async def test_no_event_is_seen_before_it_is_stored(database: Database, log: EventLog) -> None:
    """What a watcher saw must still be there after a crash."""
    journal = await begin(database, log)
    journal.notice("N", "1")
    end(journal)

    async for seen in log.follow(run_id(journal), after=0):
        stored = await RunStore(database).events(run_id(journal), after=0, count=99)
        assert seen.sequence <= stored[-1].sequence


async def test_the_stored_run_agrees_with_the_stored_events(
    database: Database, log: EventLog
) -> None:
    journal = await begin(database, log)
    journal.run.turns = 3
    end(journal)
    await follow(log, journal)

    run = (await RunStore(database).get(TENANT, run_id(journal))).whole()

    assert (run.state, run.turns, run.last_sequence) == (Run.STATE_ANSWERED, 3, 2)
    assert run.spec.question == "?"


async def test_events_that_may_wait_share_a_commit(database: Database, log: EventLog) -> None:
    """Thousands of sub-calls must not cost a commit each."""
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    journal = await begin(database, log)
    event.listen(database._engine.sync_engine, "commit", count)

    for n in range(1_000):
        told = RunEvent(notice=Notice(kind="N", text=str(n)))
        journal.add(told, may_wait=True)
        if n % 100 == 0:
            await asyncio.sleep(0)
    end(journal)
    await follow(log, journal)

    assert commits <= 3


async def test_draining_ends_a_watcher_after_what_is_there(
    database: Database, log: EventLog
) -> None:
    journal = await begin(database, log)
    watching = log.follow(run_id(journal), after=0)

    first = await anext(watching)
    log.drain()

    assert first.sequence == 1
    with pytest.raises(DrainingError):
        await anext(watching)


async def test_a_stale_driver_stores_nothing_and_is_told(database: Database, log: EventLog) -> None:
    """A process that was stopped and goes on must not write into a run that another has."""
    stale, other = await begin(database, log), await begin(database, log)
    lost: list[str] = []
    log.on_lost = lost.append
    await take_away(database, run_id(stale))

    stale.notice("N", "mine")
    other.notice("N", "fine")
    end(other)
    await follow(log, other)
    end(stale)
    await log.stored(run_id(other))

    kept = await RunStore(database).events(run_id(stale), after=0, count=9)
    assert lost == [run_id(stale)]
    assert [event.sequence for event in kept] == [1]
    assert await follow(log, other) == [1, 2, 3]


async def test_a_run_that_cannot_be_stored_fails_alone(database: Database, log: EventLog) -> None:
    """The commit is shared; a defect in one run is not."""
    broken, other = await begin(database, log), await begin(database, log)
    lost: list[str] = []
    log.on_lost = lost.append

    log.append(broken._record, RunEvent(sequence=1))  # there is one already
    end(other)

    assert await follow(log, other) == [1, 2]
    assert lost == [run_id(broken)]


async def test_events_wait_for_a_database_that_is_away(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that restarts ends no run, and nothing is told twice: a commit whose answer was
    lost is found stored."""
    monkeypatch.setattr(event_log, "_AWAY_S", (0.001, 0.001))
    failing = FailingStore(database)
    monkeypatch.setattr(log, "_store", failing)
    journal = await begin(database, log)

    journal.notice("N", "first")
    end(journal)

    assert await follow(log, journal) == [1, 2, 3]
    assert failing.attempts == 3


async def test_a_run_that_is_driven_elsewhere_can_be_watched(
    database: Database, log: EventLog
) -> None:
    """Any replica serves any watcher: it reads what another one stores, when it is woken."""
    journal = await begin(database, log)
    here = EventLog(RunStore(database))
    watching = asyncio.create_task(follow(here, journal))
    await asyncio.sleep(0)

    end(journal)
    await log.stored(run_id(journal))
    here.wake(run_id(journal))

    assert await watching == [1, 2]


async def test_a_watcher_looks_by_itself_where_nobody_wakes_it(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notification is lost with its connection."""
    monkeypatch.setattr(event_log, "_LOOK_S", 0.02)
    journal = await begin(database, log)
    watching = asyncio.create_task(follow(EventLog(RunStore(database)), journal))

    end(journal)

    assert await watching == [1, 2]


async def test_a_watch_of_a_run_taken_over_begins_with_what_others_stored(
    database: Database, log: EventLog
) -> None:
    """Memory here begins where the run was taken up."""
    journal = await begin(database, log)
    journal.notice("N", "before")
    await log.stored(run_id(journal))
    log.close_run(run_id(journal))
    log.open(journal._record, epoch=0)

    end(journal)

    assert await follow(log, journal) == [1, 2, 3]


async def test_what_an_earlier_driver_left_unstored_does_not_take_later_events_along(
    database: Database, log: EventLog
) -> None:
    """A process that loses a run and takes it up again must not store a log with a gap."""
    journal = await begin(database, log)
    again = RunRecord(journal._record.head, Run())
    again.progress.CopyFrom(journal.run)
    await take_away(database, run_id(journal))

    journal.notice("N", "of the first time")  # waits for a commit that it may share
    log.close_run(run_id(journal))
    log.open(again, epoch=1)
    end(RunJournal(again, log, RecordedEvents(), PlainSteps()))
    await log.stored(again.run_id)

    kept = await RunStore(database).events(again.run_id, after=0, count=9)
    assert [(e.sequence, e.WhichOneof("event")) for e in kept] == [
        (1, "run_changed"),
        (2, "run_changed"),
    ]


async def test_a_step_that_the_log_has_lost_is_done_again(
    database: Database, log: EventLog
) -> None:
    """After a power cut the engine's file can know more than the log's. The log counts: a run
    that failed of that would have failed for nothing."""

    class AllDone:
        async def step(self, _name: str, _work: Work, /) -> int:
            return 7

    begun = await begin(database, log)
    journal = RunJournal(begun._record, log, RecordedEvents(), AllDone())

    async def work() -> RunEvent:
        return RunEvent(turn=1, turn_started=TurnStarted())

    event = await journal.step("turn 1", turn_started(1), work)

    kept = await RunStore(database).events(run_id(journal), after=1, count=9)
    assert [each.sequence for each in kept] == [event.sequence] == [2]


class HeldStore(RunStore):
    """Stores once it may."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.may_store = asyncio.Event()

    async def append(
        self, batch: Sequence[Appendage], *, is_repeated: bool = False
    ) -> frozenset[str]:
        await self.may_store.wait()
        return await super().append(batch, is_repeated=is_repeated)


async def test_what_follows_an_event_that_others_keep_waits_for_the_next_commit_alone(
    database: Database,
) -> None:
    """The gateway has a reply before the run hears of it: its cells begin while it is stored. Their
    end is stored before anything is asked because of it, and the reply with it."""
    kept = HeldStore(database)
    log = EventLog(kept)

    async def work(turn: int) -> RunEvent:
        return RunEvent(turn=turn, turn_started=TurnStarted())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(log.write())
        journal = await begin(database, log)
        async with asyncio.timeout(60):
            step = functools.partial(work, 1)
            await journal.step("a", turn_started(1), step, is_kept=lambda each: each.turn == 1)
        step = functools.partial(work, 2)
        next_step = tasks.create_task(
            journal.step("b", turn_started(2), step, is_kept=lambda each: each.turn == 1)
        )
        await eventually(lambda: journal.run.last_sequence == 3)
        assert not next_step.done()
        kept.may_store.set()
        await next_step
        stored = await kept.events(run_id(journal), after=1, count=9)
        log.close()

    assert [each.turn for each in stored] == [1, 2]


class FailingStore(RunStore):
    """Is away once before it stores, and once after it has stored."""

    attempts = 0

    async def append(
        self, batch: Sequence[Appendage], *, is_repeated: bool = False
    ) -> frozenset[str]:
        self.attempts += 1
        if self.attempts == 1:
            raise DatabaseAwayError
        lost = await super().append(batch, is_repeated=is_repeated)
        if self.attempts == 2:
            raise DatabaseAwayError
        return lost


async def take_away(database: Database, run: str) -> None:
    """Be another process that takes a run up."""
    change = update(tables.runs).where(tables.runs.c.run_id == run)
    async with database.writing() as connection:
        await connection.execute(change.values(epoch=tables.runs.c.epoch + 1))


async def test_a_request_id_is_forgotten_after_a_day(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = RunStore(database)
    key, other = RequestKey("a", b"1"), RequestKey("a", b"2")
    first = RunRecord.queued(RunSpec())
    await runs.create(TENANT, first, first.state_event(), key)

    kept = await runs.find_request(TENANT, key)
    with pytest.raises(RequestIdReusedError):
        await runs.find_request(TENANT, other)
    monkeypatch.setattr(store, "REQUEST_IDS_KEPT_S", -1.0)
    forgotten = await runs.find_request(TENANT, key)
    second = RunRecord.queued(RunSpec())
    stored = await runs.create(TENANT, second, second.state_event(), other)

    assert kept is not None
    assert kept.run_id == first.run_id
    assert forgotten is None
    assert stored is second


async def test_another_tenants_run_is_not_found(database: Database) -> None:
    """An id tells nothing about whether it exists elsewhere."""
    runs = RunStore(database)
    record = RunRecord.queued(RunSpec())
    await runs.create(TENANT, record, record.state_event(), RequestKey("a", b"1"))

    with pytest.raises(NotFoundError):
        await runs.get("other", record.run_id)
    assert await runs.newest("other", states=[], before="", count=9, bytes_max=9) == []
    assert await runs.find_request("other", RequestKey("a", b"1")) is None


async def test_opening_a_database_twice_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/sub/runs.sqlite"
    first = await Database.open(url, MIGRATIONS)
    record = RunRecord.queued(RunSpec())
    await RunStore(first).create(TENANT, record, record.state_event(), None)
    await first.close()

    second = await Database.open(url, MIGRATIONS)
    kept = await RunStore(second).get(TENANT, record.run_id)
    await second.close()

    assert kept.whole() == record.whole()

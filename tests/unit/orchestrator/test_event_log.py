"""The log and the store of runs, over a database in a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_event_pb2 import Notice, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import event

from common.database import Database
from common.errors import DrainingError, NotFoundError, RequestIdReusedError
from orchestrator.runs import event_log, store
from orchestrator.runs.event_log import EventLog
from orchestrator.runs.journal import RunJournal
from orchestrator.runs.record import RunRecord
from orchestrator.runs.store import RequestKey, RunStore
from orchestrator.tables import MIGRATIONS

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
    first = record.state_event()
    log.open(record.run_id)
    await RunStore(database).create(TENANT, record, first, None)
    log.publish(record.run_id, [first])
    return RunJournal(record, log)


def run_id(journal: RunJournal) -> str:
    return journal._record.run_id


def end(journal: RunJournal) -> None:
    journal.run.state = Run.STATE_ANSWERED
    journal.add_state()


async def follow(log: EventLog, journal: RunJournal, *, after: int = 0) -> list[int]:
    async with asyncio.timeout(10):
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


async def test_a_failing_database_ends_the_writer(tmp_path: Path) -> None:
    """Going on would tell watchers what is not stored."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite", MIGRATIONS)
    log = EventLog(RunStore(database))
    record = RunRecord.queued(RunSpec())
    log.open(record.run_id)
    log.append(record, record.state_event())  # the run itself was never stored

    with pytest.raises(Exception, match="FOREIGN KEY"):
        await log.write()
    await database.close()


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

"""Leases: who counts as alive, and what becomes of the runs of those who do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from common.config import ConfigError
from common.database import Database
from orchestrator import tables
from orchestrator.durable import executors
from orchestrator.durable.executors import Executor, alone
from orchestrator.durable.turnstile import Turnstile
from orchestrator.runs.log.store import RunStore
from orchestrator.tables import MIGRATIONS
from tests.support.durable import waiting_run
from tests.support.postgres import PostgresServer

LEASE_S = 60.0


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    opened = await Database.open(postgres.new_database(), MIGRATIONS)
    yield opened
    await opened.close()


async def opened(database: Database) -> tuple[Executor, Turnstile]:
    executor = Executor(database, lease_s=LEASE_S)
    await executor.open()
    return executor, Turnstile(database, executor.executor_id, per_tenant_max=9)


async def store(database: Database) -> str:
    record = waiting_run()
    await RunStore(database).create("t", record, record.state_event(), None)
    return record.run_id


async def expire(database: Database, executor: Executor) -> None:
    table = tables.executors
    change = update(table).where(table.c.executor_id == executor.executor_id)
    async with database.writing() as connection:
        await connection.execute(change.values(lease_end_us=0))


async def test_runs_are_free_once_the_lease_of_their_executor_has_ended(
    database: Database,
) -> None:
    (first, theirs), (second, ours) = await opened(database), await opened(database)
    run = await store(database)
    (taken,) = await theirs.take(9)

    before = await second.reap()
    nothing = await ours.take(9)
    await expire(database, first)
    after = await second.reap()
    (again,) = await ours.take(9)

    assert (before, nothing, after) == ([], [], [run])
    assert (taken.epoch, again.epoch) == (1, 2)
    assert again.record.run_id == run


async def test_an_executor_whose_lease_has_ended_is_told_and_takes_nothing_meanwhile(
    database: Database,
) -> None:
    """What it took without a lease would be free at once, and be driven twice."""
    (first, theirs), (second, _) = await opened(database), await opened(database)
    await store(database)
    await expire(database, first)
    await second.reap()

    without = await theirs.take(9)
    renewed = [await first.renew(), await first.renew()]
    taken = await theirs.take(9)

    assert without == []
    assert renewed == [False, True]
    assert len(taken) == 1


async def test_closing_frees_runs_at_once(database: Database) -> None:
    (first, theirs), (_, ours) = await opened(database), await opened(database)
    await store(database)
    await theirs.take(9)

    await first.close()

    assert len(await ours.take(9)) == 1


async def test_a_second_orchestrator_on_one_sqlite_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lease tells two of them apart there: both would drive every run."""
    monkeypatch.setattr(executors, "_HANDOVER_S", 0.0)
    url = f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite"
    async with alone(url):
        with pytest.raises(ConfigError, match="another orchestrator uses"):
            async with alone(url):
                pass
        async with alone(f"sqlite+aiosqlite:///{tmp_path}/other.sqlite"):
            pass
    async with alone(url):
        pass

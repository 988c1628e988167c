"""Retention on both databases: what is deleted with a run, and what is kept."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_event_pb2 import CellFinished, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import select, text, update

from common.database import Database
from orchestrator import tables
from orchestrator.blobs import BlobMissingError, FolderBlobStore
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.retention import Retention
from orchestrator.tables import MIGRATIONS
from tests.support.run_rows import HOUR_US, add_run, book_all, spec


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


async def test_runs_that_ended_long_ago_are_deleted_with_events_and_outputs(
    database: Database, tmp_path: Path
) -> None:
    now_us = time.time_ns() // 1000
    day_us = 24 * HOUR_US
    blobs = FolderBlobStore(tmp_path / "objects")
    for name, age_days in (("old", 31), ("new", 29)):
        await add_run(database, name, spec=spec(), ended_us=now_us - age_days * day_us)
        await blobs.put(f"outputs/{name}/1.txt", b"whole output")
    await add_run(database, "going", spec=spec(), state=Run.STATE_RUNNING, ended_us=day_us)
    audit = await book_all(database)
    retention = Retention(database, blobs, audit, kept_days=30, now_us=lambda: now_us)
    assert await retention.sweep() == 1
    assert await retention.sweep() == 0
    async with database.reading() as connection:
        left = (await connection.execute(select(tables.runs.c.run_id))).scalars().all()
        of_old = select(tables.run_events).where(tables.run_events.c.run_id == "old")
        assert not (await connection.execute(of_old)).all()
        facts = (await connection.execute(text("SELECT run_id FROM run_facts"))).scalars().all()
    assert sorted(left) == ["going", "new"]
    assert sorted(facts) == ["new", "old"]
    with pytest.raises(BlobMissingError):
        [piece async for piece in blobs.read("outputs/old/1.txt", offset=0, size=5)]
    assert [piece async for piece in blobs.read("outputs/new/1.txt", offset=0, size=5)]
    found = await AuditCheck(database, audit).verify()
    assert (found.problems, found.runs) == ([], 1)


async def test_a_child_run_is_kept_while_its_parent_goes_on(
    database: Database, tmp_path: Path
) -> None:
    """Its spend counts for its parent, which may ask for it again."""
    await add_run(database, "p", state=Run.STATE_RUNNING, spec=spec())
    await add_run(database, "p0", spec=spec(), ended_us=HOUR_US)
    async with database.writing() as connection:
        child = update(tables.runs).where(tables.runs.c.run_id == "p0")
        await connection.execute(child.values(parent_id="p"))
    audit = await book_all(database)
    retention = Retention(database, FolderBlobStore(tmp_path / "objects"), audit, kept_days=1)
    assert await retention.sweep() == 0
    async with database.writing() as connection:
        await connection.execute(update(tables.runs).values(state=int(Run.STATE_ANSWERED)))
    assert await retention.sweep() == 1


async def test_what_a_fork_has_from_another_run_is_not_deleted_with_it(
    database: Database, tmp_path: Path
) -> None:
    blobs = FolderBlobStore(tmp_path / "objects")
    await blobs.put("outputs/other/1.txt", b"whole output")
    await blobs.put("outputs/fork/1.final", b"final value")
    await add_run(database, "fork", spec=spec(), ended_us=HOUR_US, events=1)
    finished = CellFinished(output_key="outputs/other/1.txt", final_key="outputs/fork/1.final")
    event = RunEvent(sequence=1, cell_finished=finished).SerializeToString()
    async with database.writing() as connection:
        await connection.execute(update(tables.run_events).values(event=event))
    audit = await book_all(database)
    assert await Retention(database, blobs, audit, kept_days=1).sweep() == 1
    assert [piece async for piece in blobs.read("outputs/other/1.txt", offset=0, size=5)]
    with pytest.raises(BlobMissingError):
        [piece async for piece in blobs.read("outputs/fork/1.final", offset=0, size=5)]

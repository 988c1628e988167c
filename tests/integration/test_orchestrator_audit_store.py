"""The audit log on both databases: what gets an entry, and every change to it that is found."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import delete, select, text, update

from common.database import Database, DatabaseAwayError
from orchestrator import tables
from orchestrator.blobs import FolderBlobStore
from orchestrator.contexts.store import ContextStore
from orchestrator.durable.turnstile import Turnstile
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.operations.retention import Retention
from orchestrator.tables import MIGRATIONS
from tests.support.run_rows import DEED, HOUR_US, add_context, add_run, book_all, enter, spec


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


async def test_entries_are_numbered_without_gaps_and_follow_one_another(database: Database) -> None:
    """Also where several writers add at once, as replicas do."""
    audit = AuditLog(database)
    await asyncio.gather(*(enter(database, DEED, DEED) for _ in range(10)))
    entries = await audit.page(tenant=None, subject="", after=0, count=100)
    assert [entry.sequence for entry in entries] == list(range(1, 21))
    found = await AuditCheck(database, audit).verify()
    assert (found.entries, found.problems, found.blake3) == (20, [], entries[-1].blake3)


async def test_pages_are_of_one_tenant_and_one_subject(database: Database) -> None:
    audit = AuditLog(database)
    other = Deed(tenant="other", actor="", action="run.ended", subject="runs/2")
    await enter(database, DEED, other, DEED)
    ours = await audit.page(tenant="acme", subject="", after=1, count=10)
    assert [entry.sequence for entry in ours] == [3]
    theirs = await audit.page(tenant=None, subject="runs/2", after=0, count=10)
    assert [entry.deed for entry in theirs] == [other]


@pytest.mark.parametrize("column", ["actor", "action", "subject", "details", "tenant"])
async def test_an_entry_that_was_changed_is_found(database: Database, column: str) -> None:
    audit = AuditLog(database)
    await enter(database, DEED, DEED, DEED)
    table = tables.audit_log
    value = '{"a":"b"}' if column == "details" else "changed"
    async with database.writing() as connection:
        await connection.execute(update(table).where(table.c.sequence == 2).values({column: value}))
    found = await AuditCheck(database, audit).verify()
    assert [(each.sequence, each.text) for each in found.problems] == [(2, "it was changed")]


@pytest.mark.parametrize("details", ["no json", "[]", '{"a":1}', ""])
async def test_an_entry_that_cannot_be_read_is_found_and_shown(
    database: Database, details: str
) -> None:
    """Who writes nonsense into the log must not end the check that finds it."""
    audit = AuditLog(database)
    await enter(database, DEED, DEED, DEED)
    table = tables.audit_log
    change = update(table).where(table.c.sequence == 2).values(details=details)
    async with database.writing() as connection:
        await connection.execute(change)
    found = await AuditCheck(database, audit).verify()
    shown = await audit.page(tenant=None, subject="", after=1, count=1)
    assert [(each.sequence, each.text) for each in found.problems] == [(2, "it was changed")]
    assert (found.entries, shown[0].deed.details) == (3, {"unreadable": details})


async def test_an_entry_that_was_made_anew_is_found_by_the_one_after_it(
    database: Database,
) -> None:
    """Who changes an entry can reckon its digest too, and would have to for all that follow."""
    audit = AuditLog(database)
    await enter(database, DEED, DEED, DEED)
    [second] = await audit.page(tenant=None, subject="", after=1, count=1)
    forged = dataclasses.replace(second, deed=dataclasses.replace(DEED, actor="somebody"))
    change = update(tables.audit_log).where(tables.audit_log.c.sequence == 2)
    async with database.writing() as connection:
        await connection.execute(change.values(actor="somebody", blake3=forged.digest()))
    found = await AuditCheck(database, audit).verify()
    assert [(each.sequence, each.text) for each in found.problems] == [
        (3, "it does not follow the entry before it")
    ]


async def test_values_of_other_types_do_not_end_the_check(tmp_path: Path) -> None:
    """SQLite's columns take any."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/other.sqlite", MIGRATIONS)
    await add_run(database, "a", spec=spec())
    audit = await book_all(database)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE audit_log SET actor = x'ff' WHERE sequence = 1"))
        await connection.execute(text("UPDATE run_events SET event = 'text' WHERE sequence = 2"))
    found = await AuditCheck(database, audit).verify()
    await database.close()
    assert [(each.sequence, each.text) for each in found.problems] == [
        (1, "it was changed"),
        (2, "the run's events were changed"),
    ]


async def test_a_deleted_context_has_an_entry_that_names_who_asked(database: Database) -> None:
    """In the transaction that deletes it. Those that were made for child runs have none."""
    contexts, audit = ContextStore(database), AuditLog(database)
    for context_id in ("asked", "expired", "derived"):
        await add_context(database, context_id, 5)
    await contexts.mark_derived("acme", "derived")
    await contexts.delete("acme", "asked", actor="ann")
    await contexts.delete("acme", "expired")
    await contexts.delete("acme", "derived")
    entries = await audit.page(tenant="acme", subject="", after=0, count=10)
    assert [(e.deed.action, e.deed.actor, e.deed.subject) for e in entries] == [
        ("context.deleted", "ann", "contexts/asked"),
        ("context.deleted", "", "contexts/expired"),
    ]


@pytest.mark.parametrize("is_entered", [True, False])
async def test_a_cancellation_is_stored_with_its_entry_or_not_at_all(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_entered: bool
) -> None:
    """A process can die at any moment: what it has asked for is in the log, or was not asked."""
    await add_run(database, "a", state=Run.STATE_RUNNING)
    turnstile = Turnstile(database, "executor", per_tenant_max=1)
    deed = dataclasses.replace(DEED, action="run.cancel_asked", subject="runs/a")

    async def die(*_: object) -> None:
        raise DatabaseAwayError

    if not is_entered:
        monkeypatch.setattr(AuditLog, "add_within", die)
    with contextlib.nullcontext() if is_entered else pytest.raises(DatabaseAwayError):
        await turnstile.wish_stop("a", deed=deed)

    entries = await AuditLog(database).page(tenant=None, subject="runs/a", after=0, count=9)
    async with database.reading() as connection:
        wished = (await connection.execute(select(tables.runs.c.is_stop_wished))).scalar_one()
    assert (wished, [each.deed for each in entries]) == (
        (True, [deed]) if is_entered else (False, [])
    )


async def test_an_entry_that_was_removed_is_found(database: Database) -> None:
    audit = AuditLog(database)
    await enter(database, DEED, DEED, DEED)
    async with database.writing() as connection:
        await connection.execute(delete(tables.audit_log).where(tables.audit_log.c.sequence == 2))
    found = await AuditCheck(database, audit).verify()
    assert [each.text for each in found.problems] == ["entry 2 is missing"]


async def test_events_that_were_changed_after_a_runs_end_are_found(database: Database) -> None:
    """Code, sub-calls and decisions are in the events; the entry holds their digest."""
    await add_run(database, "a", spec=spec())
    audit = await book_all(database)
    assert not (await AuditCheck(database, audit).verify()).problems
    table = tables.run_events
    async with database.writing() as connection:
        await connection.execute(
            update(table).where(table.c.sequence == 1).values(event=RunEvent().SerializeToString())
        )
    found = await AuditCheck(database, audit).verify()
    assert [(each.subject, each.text) for each in found.problems] == [
        ("runs/a", "the run's events were changed")
    ]


async def test_events_that_were_deleted_without_an_entry_are_found(
    database: Database, tmp_path: Path
) -> None:
    """What retention deletes has an entry; what somebody else deletes has none."""
    await add_run(database, "a", spec=spec(), ended_us=HOUR_US)
    await add_run(database, "b", spec=spec())
    audit = await book_all(database)
    await Retention(database, FolderBlobStore(tmp_path), audit, kept_days=1).sweep()
    assert not (await AuditCheck(database, audit).verify()).problems
    async with database.writing() as connection:
        await connection.execute(delete(tables.run_events))
    found = await AuditCheck(database, audit).verify()
    assert [(each.subject, each.text) for each in found.problems] == [
        ("runs/b", "the run's events are gone")
    ]

"""The audit log, the books on runs, the views and retention, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.run_event_pb2 import CellFinished, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database, DatabaseAwayError
from orchestrator import tables
from orchestrator.blobs import BlobMissingError, FolderBlobStore
from orchestrator.contexts.store import ContextStore
from orchestrator.durable.turnstile import Turnstile
from orchestrator.errors import KillSwitchError
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.operations.kill_switches import KillSwitches
from orchestrator.operations.retention import Retention
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.statistics import HourErrors, SizeLatency, Statistics, UserCost
from orchestrator.operations.stopping import Stopping
from orchestrator.tables import MIGRATIONS
from tests.support.eventually import eventually

HOUR_US = 3_600 * 1_000_000
DEED = Deed(tenant="acme", actor="ci", action="run.created", subject="runs/1")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


async def add_run(
    database: Database,
    run_id: str,
    *,
    tenant: str = "acme",
    state: Run.State.ValueType = Run.STATE_ANSWERED,
    took_s: float = 1.0,
    ended_us: int | None = None,
    events: int = 2,
    **head: Any,
) -> None:
    """Store a run as a driver leaves it."""
    whole = Run(name=f"runs/{run_id}", state=state, turns=2, **head)
    ended_us = ended_us or time.time_ns() // 1000
    whole.create_time.FromMicroseconds(ended_us - int(took_s * 1e6) - 10)
    whole.start_time.FromMicroseconds(ended_us - int(took_s * 1e6))
    whole.end_time.FromMicroseconds(ended_us)
    if state == Run.STATE_FAILED:
        whole.error.code = 13
    async with database.writing() as connection:
        await connection.execute(
            tables.runs.insert().values(
                run_id=run_id,
                tenant=tenant,
                state=state,
                head=b"",
                progress=whole.SerializeToString(),
            )
        )
        for sequence in range(1, events + 1):
            finished = CellFinished(output_key=f"outputs/{run_id}/{sequence}.txt")
            event = RunEvent(sequence=sequence, cell_finished=finished)
            await connection.execute(
                tables.run_events.insert().values(
                    run_id=run_id, sequence=sequence, event=event.SerializeToString()
                )
            )


def spec(context: str = "contexts/c", **fields: Any) -> RunSpec:
    """Return a spec over a context."""
    return RunSpec(question="?", context=context, **fields)


async def add_context(database: Database, context_id: str, size_bytes: int) -> None:
    """Store the description of a context."""
    values: dict[str, Any] = {}
    for column in tables.contexts.columns:
        if not column.nullable and column.server_default is None:
            values[column.name] = "" if column.type.python_type is str else 0
    values |= {"tenant": "acme", "context_id": context_id, "size_bytes": size_bytes}
    async with database.writing() as connection:
        await connection.execute(tables.contexts.insert().values(**values))


async def enter(database: Database, *deeds: Deed) -> None:
    """Add entries to the audit log."""
    async with database.writing() as connection:
        await AuditLog(database).add_within(connection, deeds)


async def book_all(database: Database) -> AuditLog:
    """Bring the books up to date."""
    audit = AuditLog(database)
    books = RunBooks(database, audit)
    while await books.book():
        pass
    return audit


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


async def test_what_a_switch_has_not_stopped_yet_is_found_later(database: Database) -> None:
    """As where a process was killed between storing a switch and stopping what it stands for."""
    fields_of: dict[str, dict[str, Any]] = {
        "named": {},
        "other": {},
        "ended": {"state": Run.STATE_ANSWERED},
        "tenant": {"tenant": "switched"},
        "profile": {"spec": spec(profile="profiles/search")},
        "unlike": {"spec": spec(profile="profiles/research")},
    }
    for run_id, fields in fields_of.items():
        await add_run(database, run_id, **{"state": Run.STATE_RUNNING} | fields)
    runs = tables.runs  # heads are what tells of profiles
    async with database.writing() as connection:
        await connection.execute(update(runs).values(head=runs.c.progress))
    turnstile = Turnstile(database, "executor", per_tenant_max=1)
    asked: list[str] = []

    async def cancel(run_id: str) -> None:
        asked.append(run_id)
        await turnstile.wish_stop(run_id)

    stopping, switches = Stopping(database, cancel), KillSwitches(database, AuditLog(database))
    assert await stopping.enforce() == 0
    for target in ("runs/named", "runs/ended", "tenants/switched", "profiles/search"):
        await switches.set(target, "too dear", tenant="ops", by="root")

    assert await stopping.enforce() == 3
    assert sorted(asked) == ["named", "profile", "tenant"]
    assert await stopping.enforce() == 0


async def test_an_entry_that_was_removed_is_found(database: Database) -> None:
    audit = AuditLog(database)
    await enter(database, DEED, DEED, DEED)
    async with database.writing() as connection:
        await connection.execute(delete(tables.audit_log).where(tables.audit_log.c.sequence == 2))
    found = await AuditCheck(database, audit).verify()
    assert [each.text for each in found.problems] == ["entry 2 is missing"]


async def test_a_run_has_an_entry_when_it_was_created_and_one_when_it_has_ended(
    database: Database,
) -> None:
    await add_run(database, "a", state=Run.STATE_RUNNING, spec=spec(), created_by="ci")
    audit = await book_all(database)
    entries = await audit.page(tenant="acme", subject="runs/a", after=0, count=10)
    assert [(entry.deed.action, entry.deed.actor) for entry in entries] == [("run.created", "ci")]
    ended = Run(name="runs/a", state=Run.STATE_ANSWERED, spec=spec())
    async with database.writing() as connection:
        await connection.execute(
            update(tables.runs).values(state=ended.state, progress=ended.SerializeToString())
        )
    await book_all(database)
    entries = await audit.page(tenant="acme", subject="runs/a", after=0, count=10)
    assert [entry.deed.action for entry in entries] == ["run.created", "run.ended"]
    assert entries[1].deed.details["state"] == "ANSWERED"
    assert entries[1].deed.details["events"] == "2"


async def test_several_processes_book_a_run_once(database: Database) -> None:
    for number in range(20):
        await add_run(database, f"{number:02}", spec=spec())
    await asyncio.gather(*(book_all(database) for _ in range(4)))
    entries = await AuditLog(database).page(tenant=None, subject="", after=0, count=100)
    assert sorted({entry.deed.subject for entry in entries}) == [f"runs/{n:02}" for n in range(20)]
    assert len(entries) == 40


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


async def test_the_views_answer_the_three_questions(database: Database) -> None:
    now_us = time.time_ns() // 1000
    await add_context(database, "small", 999)
    await add_context(database, "large", 5_000_000)
    for number in range(20):
        run = Run(spec=spec("contexts/large", labels={"user": "ann"}))
        run.usage.input_tokens, run.usage.cost_usd_nanos = 10, 3_000_000_000
        await add_run(
            database, f"l{number}", took_s=number + 1, spec=run.spec, usage=run.usage,
            ended_us=now_us,
        )  # fmt: skip
    await add_run(
        database, "s", spec=spec("contexts/small"), created_by="ci", state=Run.STATE_FAILED,
        ended_us=now_us,
    )  # fmt: skip
    week_us = 8 * 24 * HOUR_US
    await add_run(database, "old", spec=spec(), created_by="gone", ended_us=now_us - week_us)
    await add_run(database, "child", spec=spec(), depth=1, created_by="child")
    await add_run(database, "other", tenant="other", spec=spec(), created_by="other")
    await book_all(database)
    statistics = Statistics(database)
    assert await statistics.cost_by_user("acme") == [
        UserCost("acme", "ann", 20, 200, 60_000_000_000),
        UserCost("acme", "ci", 1, 0, 0),
    ]
    assert await statistics.latency_by_context_size("acme") == [
        SizeLatency("acme", 0, 1, 1_000_000, 1_000_000),
        SizeLatency("acme", 1_000_000, 20, 10_000_000, 19_000_000),
    ]
    hour_us = now_us // HOUR_US * HOUR_US
    assert await statistics.errors_by_hour("acme") == [HourErrors("acme", hour_us, 21, 1)]
    assert {cost.tenant for cost in await statistics.cost_by_user(None)} == {"acme", "other"}


async def test_the_documented_queries_agree_with_the_calls(database: Database) -> None:
    """Operators copy them from docs/operations.md, on either database."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    now_us = time.time_ns() // 1000
    for number, dollars in enumerate((2, 5)):
        run = Run(spec=spec(labels={"user": f"u{number}"}))
        run.usage.cost_usd_nanos = dollars * 1_000_000_000
        await add_run(database, f"r{number}", spec=run.spec, usage=run.usage, ended_us=now_us)
    await book_all(database)
    statistics = Statistics(database)
    answers: dict[str, list[Any]] = {
        "cost_by_user": await statistics.cost_by_user("acme"),
        "latency_by_context_size": await statistics.latency_by_context_size("acme"),
        "errors_by_hour": await statistics.errors_by_hour("acme"),
    }
    views = re.findall(r"^\| [^|]+\? \| `(\w+)` \| ([^|]+) \|$", page, re.MULTILINE)
    [query] = re.findall(r"```sql\n(.+?)```", page, re.DOTALL)
    async with database.reading() as connection:
        for view, columns in views:
            names = re.sub(r"\s*\([^)]*\)", "", columns)
            rows = await connection.execute(text(f"SELECT {names} FROM {view}"))
            assert sorted(map(tuple, rows)) == sorted(map(dataclasses.astuple, answers[view]))
        dearest = [(user, float(usd)) for user, usd in await connection.execute(text(query))]
    assert {view for view, _ in views} == set(answers)
    assert dearest == [("u1", 5.0), ("u0", 2.0)]


async def test_a_switch_stops_its_target_until_it_is_deleted(database: Database) -> None:
    switches = KillSwitches(database, AuditLog(database))
    await switches.check(["tenants/acme", "profiles/"])
    await switches.set("tenants/acme", "too dear", tenant="ops", by="root")
    await switches.set("tenants/acme", "still too dear", tenant="ops", by="root")
    with pytest.raises(KillSwitchError) as caught:
        await switches.check(["tenants/acme", "profiles/"])
    assert caught.value.metadata == {"target": "tenants/acme", "why": "still too dear"}
    assert caught.value.reason == ErrorReason.ERROR_REASON_KILL_SWITCH
    await switches.check(["tenants/other"])
    assert [each.target for each in await switches.page(after="", count=5)] == ["tenants/acme"]
    assert await switches.unset("tenants/acme", tenant="ops", by="root")
    assert not await switches.unset("tenants/acme", tenant="ops", by="root")
    await switches.check(["tenants/acme"])
    entries = await AuditLog(database).page(tenant="ops", subject="", after=0, count=9)
    assert [entry.deed.action for entry in entries] == [
        "kill_switch.set",
        "kill_switch.set",
        "kill_switch.deleted",
    ]


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


class _FailsAtFirst(Database):
    """A database that fails the first time."""

    failure: Exception | None = None

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        async with super().reading() as connection:
            yield connection


@pytest.mark.parametrize("failure", [DatabaseAwayError(), RuntimeError()], ids=type)
async def test_books_and_retention_go_on_after_a_failure(
    database_url: str, tmp_path: Path, failure: Exception
) -> None:
    """A restart of PostgreSQL must not end the audit log, statistics or retention for good, and
    nor must a defect: nobody would notice."""
    database = await _FailsAtFirst.open(database_url, MIGRATIONS)
    database.failure = failure
    other = await Database.open(database_url, MIGRATIONS)
    await add_run(other, "a", spec=spec(), ended_us=HOUR_US)
    audit, seen = AuditLog(database), AuditLog(other)
    keeping = asyncio.create_task(RunBooks(database, audit).keep(0.01))
    await eventually(lambda: _has_ended(seen, "run.ended"))
    database.failure = failure
    blobs = FolderBlobStore(tmp_path / "objects")
    deleting = asyncio.create_task(Retention(database, blobs, audit, kept_days=1).keep(0.01))
    await eventually(lambda: _has_ended(seen, "run.deleted"))
    for task in (keeping, deleting):
        task.cancel()
    await asyncio.wait((keeping, deleting))
    await database.close()
    await other.close()


async def _has_ended(audit: AuditLog, action: str) -> bool:
    """Tell whether the newest entry of all is of an action."""
    entries = await audit.page(tenant=None, subject="", after=0, count=10)
    return [entry.deed.action for entry in entries][-1:] == [action]


async def test_a_run_that_cannot_be_booked_holds_up_no_other(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL takes no NUL character in a text, and a number only so large."""
    await add_run(database, "a", spec=spec(labels={"user": "\0"}))
    await add_run(database, "b", spec=spec())
    await add_run(database, "c", spec=spec())
    async with database.writing() as connection:
        damaged = update(tables.runs).where(tables.runs.c.run_id == "c")
        await connection.execute(damaged.values(progress=b"\xff"))
    books = RunBooks(database, AuditLog(database))
    async with asyncio.timeout(10):
        while await books.book():
            pass
    statistics = await Statistics(database).cost_by_user("acme")
    booked = sum(cost.runs for cost in statistics)
    assert booked == (1 if database.is_shared else 2)
    told = [vars(each) for each in caplog.records if "cannot be booked" in each.message]
    cannot = [each["run"] for each in told]
    assert cannot == (["runs/a", "runs/c"] if database.is_shared else ["runs/c"])


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

"""The books on runs, the views over them and kill switches, on both databases."""

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
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database, DatabaseAwayError
from orchestrator import tables
from orchestrator.blobs import FolderBlobStore
from orchestrator.chores import Chore, doing
from orchestrator.durable.turnstile import Turnstile
from orchestrator.errors import KillSwitchError
from orchestrator.operations.audit_log import AuditLog
from orchestrator.operations.kill_switches import KillSwitches
from orchestrator.operations.retention import Retention
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.statistics import HourErrors, SizeLatency, Statistics, UserCost
from orchestrator.operations.stopping import Stopping
from orchestrator.tables import MIGRATIONS
from tests.support.eventually import eventually
from tests.support.run_rows import HOUR_US, add_context, add_run, book_all, spec


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


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
    books = RunBooks(database, audit)
    retention = Retention(database, FolderBlobStore(tmp_path / "objects"), audit, kept_days=1)
    async with doing(Chore(name="books", work=books.book_all, every_s=0.01)):
        await eventually(lambda: _has_ended(seen, "run.ended"))
        database.failure = failure
        async with doing(Chore(name="retention", work=retention.sweep_all, every_s=0.01)):
            await eventually(lambda: _has_ended(seen, "run.deleted"))
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
    async with asyncio.timeout(60):
        while await books.book():
            pass
    statistics = await Statistics(database).cost_by_user("acme")
    booked = sum(cost.runs for cost in statistics)
    assert booked == (1 if database.is_shared else 2)
    told = [vars(each) for each in caplog.records if "cannot be booked" in each.message]
    cannot = [each["run"] for each in told]
    assert cannot == (["runs/a", "runs/c"] if database.is_shared else ["runs/c"])

"""Rows as runs, contexts and deeds leave them in the orchestrator's tables, without these."""

from __future__ import annotations

import time
from typing import Any

from fathom.orchestrator.v1.run_event_pb2 import CellFinished, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.database import Database
from orchestrator import tables
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.operations.run_books import RunBooks

HOUR_US = 3_600 * 1_000_000
DEED = Deed(tenant="acme", actor="ci", action="run.created", subject="runs/1")


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

"""Keeps the books on runs: an audit entry when one was created and when it has ended, and the facts
that statistics are made of.

It reads what is stored and works in the background, so that no run waits for it. Every process
of the service may do it at once.
"""

from __future__ import annotations

import logging
from typing import Any

from blake3 import blake3
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.run_pb2 import Run
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, and_, or_, select, update
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import ReceivedError
from orchestrator import tables
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.runs.log.record import TERMINAL_STATES

NOTHING, CREATED, ENDED = range(3)
"""Values of `runs.booked`."""
_RUNS_AT_ONCE = 100
_EVENTS_AT_ONCE = 200
_USER_LABEL = "user"
_log = logging.getLogger(__name__)


class RunBooks:
    """The books of all tenants."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit
        self._unbookable: set[str] = set()

    async def book_all(self) -> None:
        """Book until there is nothing to book."""
        while await self.book():
            pass

    async def book(self) -> int:
        """Book some of the runs that are not up to date; return how many there were. One that
        cannot be read, or that the database does not take, is told in the log, and holds up no
        other."""
        table = tables.runs.c
        ended = and_(table.booked == CREATED, table.state.in_(sorted(TERMINAL_STATES)))
        query = (
            select(tables.runs)
            .where(or_(table.booked == NOTHING, ended), table.run_id.not_in(self._unbookable))
            .order_by(table.run_id)
            .limit(_RUNS_AT_ONCE)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            try:
                await self._book(row)
            except (DataError, DecodeError):
                self._unbookable.add(row.run_id)
                _log.exception("a run cannot be booked", extra={"run": f"runs/{row.run_id}"})
        return len(rows)

    async def _book(self, row: Row[Any]) -> None:
        run = Run.FromString(row.head)
        run.MergeFrom(Run.FromString(row.progress))
        deeds = []
        if row.booked == NOTHING:
            deeds.append(_created(row.tenant, run))
        has_ended = run.state in TERMINAL_STATES
        if has_ended:
            async with self._database.reading() as connection:
                deeds.append(_ended(row.tenant, run, await events_digest(connection, row.run_id)))
        change = (
            update(tables.runs)
            .where(tables.runs.c.run_id == row.run_id, tables.runs.c.booked == row.booked)
            .values(booked=ENDED if has_ended else CREATED)
        )
        async with self._database.writing() as connection:
            if not (await connection.execute(change)).rowcount:
                return  # another process was faster, or the run is deleted
            await self._audit.add_within(connection, deeds)
            if has_ended:
                size = await _context_bytes(connection, row.tenant, run.spec.context)
                facts = _facts(row.tenant, run, size)
                await connection.execute(tables.run_facts.insert().values(**facts))


async def events_digest(connection: AsyncConnection, run_id: str) -> tuple[int, str]:
    """Return how many events a run has, and the digest of their bytes in order."""
    table = tables.run_events.c
    query = select(table.event).where(table.run_id == run_id).order_by(table.sequence)
    digest, count = blake3(), 0
    async with connection.stream(query.execution_options(yield_per=_EVENTS_AT_ONCE)) as rows:
        async for (event,) in rows:
            digest.update(event)
            count += 1
    return count, digest.hexdigest()


async def _context_bytes(connection: AsyncConnection, tenant: str, context: str) -> int:
    table = tables.contexts.c
    query = select(table.size_bytes).where(
        table.tenant == tenant, table.context_id == context.removeprefix("contexts/")
    )
    return (await connection.execute(query)).scalar() or 0


def _created(tenant: str, run: Run) -> Deed:
    spec = run.spec.SerializeToString(deterministic=True)
    details = {"spec_blake3": blake3(spec).hexdigest(), "depth": str(run.depth)}
    for field in ("parent", "forked_from"):
        if value := getattr(run, field):
            details[field] = value
    return Deed(
        tenant=tenant,
        actor=run.created_by,
        action="run.created",
        subject=run.name,
        details=details,
    )


def _ended(tenant: str, run: Run, events: tuple[int, str]) -> Deed:
    count, digest = events
    details = {
        "state": Run.State.Name(run.state).removeprefix("STATE_"),
        "events": str(count),
        "events_blake3": digest,
        "cost_usd_nanos": str(run.usage.cost_usd_nanos),
    }
    return Deed(tenant=tenant, actor="", action="run.ended", subject=run.name, details=details)


def _facts(tenant: str, run: Run, context_bytes: int) -> dict[str, Any]:
    return {
        "run_id": run.name.removeprefix("runs/"),
        "tenant": tenant,
        "user_name": run.spec.labels.get(_USER_LABEL, "") or run.created_by,
        "profile": run.spec.profile,
        "depth": run.depth,
        "state": run.state,
        "error_reason": _reason(run),
        "context_bytes": context_bytes,
        "context_bytes_from": size_class(context_bytes),
        "created_us": _us(run.create_time),
        "started_us": _us(run.start_time),
        "ended_us": _us(run.end_time),
        "turns": run.turns,
        "sub_calls": run.sub_calls,
        "input_tokens": run.usage.input_tokens,
        "output_tokens": run.usage.output_tokens,
        "cost_usd_nanos": run.usage.cost_usd_nanos,
    }


def size_class(size_bytes: int) -> int:
    """Return the largest power of ten that is not above a size, and 0 below a thousand."""
    return int(10 ** (len(str(size_bytes)) - 1)) if size_bytes >= 1000 else 0


def _reason(run: Run) -> str:
    if not run.HasField("error"):
        return ""
    reason = ReceivedError(run.error).reason
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def _us(moment: Timestamp) -> int:
    return moment.ToNanoseconds() // 1000

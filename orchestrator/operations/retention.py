"""Retention: runs that ended long ago are deleted, with their events and whole outputs. What the
audit log and the statistics hold of them stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from sqlalchemy import delete, select

from common.database import Database
from orchestrator import tables
from orchestrator.blobs import BlobStore
from orchestrator.conversations.store import let_go_of_run
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.operations.run_books import ENDED
from orchestrator.runs.log.record import TERMINAL_STATES
from orchestrator.runs.sessions.checkpoint_owners import disown

_RUNS_AT_ONCE = 50
_EVENTS_AT_ONCE = 200
_DAY_US = 86_400 * 1_000_000
_OF_A_RUN = (
    *(tables.late_usage, tables.run_events, tables.run_requests),
    *(tables.host_tool_calls, tables.child_runs),
)
_log = logging.getLogger(__name__)


class Retention:
    """Deletes what is older than is kept."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        audit: AuditLog,
        *,
        kept_days: float,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`kept_days` counts from a run's end."""
        self._database = database
        self._blobs = blobs
        self._audit = audit
        self._kept_us = int(kept_days * _DAY_US)
        self._now_us = now_us

    async def sweep_all(self) -> None:
        """Delete what is due, until nothing is."""
        while await self.sweep():
            pass

    async def sweep(self) -> int:
        """Delete some runs that are due; return how many."""
        facts, runs, parents = tables.run_facts.c, tables.runs.c, tables.runs.alias().c
        # What a child took counts until its parent has told it, and a cell of the parent's that
        # is run again asks for the child again.
        is_needed = (
            select(parents.run_id)
            .where(parents.run_id == runs.parent_id, parents.state.not_in(TERMINAL_STATES))
            .exists()
        )
        query = (
            select(runs.run_id, runs.tenant)
            .join(tables.run_facts, facts.run_id == runs.run_id)
            .where(runs.booked == ENDED, facts.ended_us < self._now_us() - self._kept_us)
            .where(~is_needed)
            .order_by(facts.ended_us)
            .limit(_RUNS_AT_ONCE)
        )
        async with self._database.reading() as connection:
            due = (await connection.execute(query)).all()
        for row in due:
            await self._delete(row.run_id, row.tenant)
        return len(due)

    async def _delete(self, run_id: str, tenant: str) -> None:
        # Outputs first: a process that dies here leaves the run, and with it the way to the rest.
        for key in await self._output_keys(run_id):
            await self._blobs.delete(key)
        deed = Deed(tenant=tenant, actor="", action="run.deleted", subject=f"runs/{run_id}")
        async with self._database.writing() as connection:
            await let_go_of_run(connection, tenant, run_id)
            await disown(connection, f"runs/{run_id}")
            for table in _OF_A_RUN:
                await connection.execute(delete(table).where(table.c.run_id == run_id))
            run = delete(tables.runs).where(tables.runs.c.run_id == run_id)
            if (await connection.execute(run)).rowcount:
                await self._audit.add_within(connection, [deed])

    async def _output_keys(self, run_id: str) -> set[str]:
        """Return the keys of what the run's events only refer to. What the first events of a fork
        refer to is the other run's."""
        table = tables.run_events.c
        query = select(table.event).where(table.run_id == run_id)
        keys: set[str] = set()
        async with self._database.reading() as connection:
            options = query.execution_options(yield_per=_EVENTS_AT_ONCE)
            async with connection.stream(options) as rows:
                async for (data,) in rows:
                    event = RunEvent.FromString(data)
                    keys |= {
                        event.cell_finished.output_key,
                        event.cell_finished.final_key,
                        event.value_read.final_key,
                    }
        return {key for key in keys if key.startswith(f"outputs/{run_id}/")}

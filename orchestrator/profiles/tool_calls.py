"""Calls of host tools in the database: which were made, and what came of each, so that code that
runs again is told the same and calls nothing twice.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from fathom.orchestrator.v1.run_pb2 import Run
from google.rpc.status_pb2 import Status
from sqlalchemy import func, select, update

from common.database import Database
from common.errors import NotFoundError
from orchestrator import tables
from orchestrator.errors import HostToolRefusedError
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.runs.log.record import RunRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewCall:
    """A call that is about to be made."""

    request_id: str
    """`{run}/{turn}/{cell}/t{position}`."""
    run: str
    """`runs/{run}`."""
    root: str
    """`runs/{run}` at the root of its tree."""
    tool: str
    """The tool's name."""
    digest: bytes
    """Of tool and arguments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownCall:
    """A call that was made, or is being made."""

    root: str
    """`runs/{run}` at the root of its tree."""
    digest: bytes
    """Of tool and arguments."""
    outcome: str | Status | None
    """Its result, or why there is none; None where it has not ended, as far as is known."""


class ToolCalls:
    """The host tool calls of every tenant."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def find(self, tenant: str, request_id: str) -> KnownCall | None:
        """Return a call that was begun before."""
        table = tables.host_tool_calls.c
        query = select(tables.host_tool_calls).where(
            table.tenant == tenant, table.request_id == request_id
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        outcome: str | Status | None = row.result_json
        if row.error is not None:
            outcome = Status.FromString(row.error)
        return KnownCall(root=f"runs/{row.root_id}", digest=row.request_digest, outcome=outcome)

    async def begin(self, tenant: str, call: NewCall, *, calls_max: int) -> None:
        """Store that a call is about to be made. Raises HostToolRefusedError where its tree has
        made as many, or its run is not under way."""
        table, runs = tables.host_tool_calls, tables.runs.c
        root_id = call.root.removeprefix("runs/")
        async with self._database.writing() as connection:
            # Under a lock on the root: calls of the same tree are counted one after another.
            locked = select(runs.state).where(runs.tenant == tenant, runs.run_id == root_id)
            await connection.execute(locked.with_for_update())
            own = select(runs.state).where(
                runs.tenant == tenant, runs.run_id == call.run.removeprefix("runs/")
            )
            if (await connection.execute(own)).scalar() != Run.STATE_RUNNING:
                raise HostToolRefusedError(
                    call.tool, "run_ended", "the run has ended, or has not begun"
                )
            counted = select(func.count()).where(
                table.c.root_id == root_id,
                table.c.tool == call.tool,
                table.c.is_counted.is_(True),
            )
            if ((await connection.execute(counted)).scalar() or 0) >= calls_max:
                raise HostToolRefusedError(
                    call.tool, "calls_max", f"the run has made its {calls_max} calls"
                )
            await connection.execute(
                table.insert().values(_row(tenant, call) | {"is_counted": True})
            )

    async def refuse(self, tenant: str, call: NewCall, error: Status) -> None:
        """Store that a call was not made, and why, so that it is told the same again."""
        row = _row(tenant, call) | {"error": error.SerializeToString(), "is_counted": False}
        async with self._database.writing() as connection:
            await connection.execute(tables.host_tool_calls.insert().values(row))

    async def end(
        self, tenant: str, request_id: str, outcome: str | Status, deed: Deed
    ) -> str | Status:
        """Store what came of a call, and its audit entry with it; return that, or what was stored
        of it before."""
        table = tables.host_tool_calls
        values = (
            {"result_json": outcome}
            if isinstance(outcome, str)
            else {"error": outcome.SerializeToString()}
        )
        change = update(table).where(
            table.c.tenant == tenant,
            table.c.request_id == request_id,
            table.c.result_json.is_(None),
            table.c.error.is_(None),
        )
        async with self._database.writing() as connection:
            is_first = (await connection.execute(change.values(**values))).rowcount
            await self._audit.add_within(connection, [deed])
        if is_first:
            return outcome
        known = await self.find(tenant, request_id)
        return outcome if known is None or known.outcome is None else known.outcome

    async def run(self, tenant: str, name: str) -> RunRecord:
        """Return the run of a call; raises NotFoundError."""
        query = select(tables.runs.c.head, tables.runs.c.progress).where(
            tables.runs.c.tenant == tenant, tables.runs.c.run_id == name.removeprefix("runs/")
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFoundError(name)
        return RunRecord(Run.FromString(row.head), Run.FromString(row.progress))


def _row(tenant: str, call: NewCall) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "request_id": call.request_id,
        "run_id": call.run.removeprefix("runs/"),
        "root_id": call.root.removeprefix("runs/"),
        "tool": call.tool,
        "request_digest": call.digest,
        "created_us": time.time_ns() // 1000,
    }

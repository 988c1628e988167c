"""Kill switches: what operators have stopped, and the check that lets nothing new of it in.

Stopping what runs is the run queue's business; see the servicer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, select

from common.database import Database
from orchestrator import tables
from orchestrator.errors import KillSwitchError
from orchestrator.operations.audit_log import AuditLog, Deed


@dataclasses.dataclass(frozen=True, kw_only=True)
class KillSwitch:
    """One switch."""

    target: str
    """`runs/{run}`, `tenants/{tenant}` or `profiles/{profile}`."""
    reason: str
    """Why, for those who meet it."""
    created_by: str
    """Name of the API key that set it."""
    created_us: int
    """When, in microseconds of Unix time."""


class KillSwitches:
    """The switches that are set."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    async def set(self, target: str, reason: str, *, tenant: str, by: str) -> KillSwitch:
        """Set a switch, or its reason anew. `tenant` and `by` are those of the operator."""
        switch = KillSwitch(
            target=target, reason=reason, created_by=by, created_us=time.time_ns() // 1000
        )
        deed = Deed(
            tenant=tenant,
            actor=by,
            action="kill_switch.set",
            subject=target,
            details={"reason": reason},
        )
        table = tables.kill_switches
        async with self._database.writing() as connection:
            await connection.execute(delete(table).where(table.c.target == target))
            await connection.execute(table.insert().values(**dataclasses.asdict(switch)))
            await self._audit.add_within(connection, [deed])
        return switch

    async def unset(self, target: str, *, tenant: str, by: str) -> bool:
        """Delete a switch; return whether there was one."""
        table = tables.kill_switches
        deed = Deed(tenant=tenant, actor=by, action="kill_switch.deleted", subject=target)
        async with self._database.writing() as connection:
            found = await connection.execute(delete(table).where(table.c.target == target))
            if found.rowcount:
                await self._audit.add_within(connection, [deed])
        return bool(found.rowcount)

    async def page(self, *, after: str, count: int) -> list[KillSwitch]:
        """Return switches by target, those after one."""
        table = tables.kill_switches
        query = select(table).where(table.c.target > after).order_by(table.c.target).limit(count)
        async with self._database.reading() as connection:
            return [_switch(row) for row in await connection.execute(query)]

    async def check(self, targets: Sequence[str]) -> None:
        """Raise KillSwitchError where one of the targets is stopped."""
        table = tables.kill_switches
        query = select(table).where(table.c.target.in_(targets)).order_by(table.c.target).limit(1)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is not None:
            raise KillSwitchError(row.target, row.reason)


def _switch(row: Row[Any]) -> KillSwitch:
    return KillSwitch(**row._asdict())

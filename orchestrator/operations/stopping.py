"""Stopping everything that a kill switch stands for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import select

from common.database import Database
from orchestrator import tables
from orchestrator.runs.log.record import TERMINAL_STATES

Cancel = Callable[[str], Awaitable[None]]
"""Asks the run of an id to stop, wherever it is driven or waits."""


class Stopping:
    """Finds what is to be stopped, in all processes, and asks it to."""

    def __init__(self, database: Database, cancel: Cancel) -> None:
        self._database = database
        self._cancel = cancel

    async def stop(self, target: str) -> int:
        """Ask the unfinished runs of `runs/{run}`, `tenants/{tenant}` or `profiles/{profile}` to
        stop; return how many they are."""
        collection, _, name = target.partition("/")
        table = tables.runs.c
        query = select(table.run_id, table.head).where(table.state.not_in(sorted(TERMINAL_STATES)))
        if collection == "runs":
            query = query.where(table.run_id == name)
        elif collection == "tenants":
            query = query.where(table.tenant == name)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        if collection == "profiles":
            rows = [row for row in rows if _profile(row.head) == target]
        for row in rows:
            await self._cancel(row.run_id)
        return len(rows)


def _profile(head: bytes) -> str:
    return Run.FromString(head).spec.profile

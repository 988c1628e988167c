"""Stopping everything that a kill switch stands for: at once when it is set, and again and again
what a process that was killed meanwhile, or a run that came in beside it, has left.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import ColumnElement, or_, select, true

from common.database import Database
from orchestrator import tables
from orchestrator.runs.log.record import TERMINAL_STATES

Cancel = Callable[[str], Awaitable[None]]
"""Asks the run of an id to stop, wherever it is driven or waits."""
_log = logging.getLogger(__name__)


class Stopping:
    """Finds what is to be stopped, in all processes, and asks it to."""

    def __init__(self, database: Database, cancel: Cancel) -> None:
        self._database = database
        self._cancel = cancel

    async def stop(self, target: str) -> int:
        """Ask the unfinished runs of `runs/{run}`, `tenants/{tenant}` or `profiles/{profile}` to
        stop; return how many they are."""
        collection, _, name = target.partition("/")
        runs = tables.runs.c
        if collection == "profiles":
            found = await self._of_profiles({target}, true())
        elif collection == "tenants":
            found = await self._live(runs.tenant == name)
        else:
            found = await self._live(runs.run_id == name)
        for run_id in found:
            await self._cancel(run_id)
        return len(found)

    async def enforce(self) -> int:
        """Ask the unfinished runs to stop that a switch stands for and nobody has asked; return
        how many they are."""
        runs, target = tables.runs.c, tables.kill_switches.c.target
        async with self._database.reading() as connection:
            switched = set((await connection.execute(select(target))).scalars())
        if not switched:
            return 0
        is_unasked = runs.is_stop_wished.is_(False)
        is_named = or_(
            ("runs/" + runs.run_id).in_(select(target)),
            ("tenants/" + runs.tenant).in_(select(target)),
        )
        found = await self._live(is_unasked, is_named)
        if profiles := {each for each in switched if each.startswith("profiles/")}:
            found += await self._of_profiles(profiles, is_unasked)
        for run_id in found:
            await self._cancel(run_id)
        if found:
            _log.warning("runs were stopped by kill switches", extra={"runs": len(found)})
        return len(found)

    async def _live(self, *conditions: ColumnElement[bool]) -> list[str]:
        query = select(tables.runs.c.run_id).where(_is_live(), *conditions)
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def _of_profiles(self, profiles: set[str], condition: ColumnElement[bool]) -> list[str]:
        table = tables.runs.c
        query = select(table.run_id, table.head).where(_is_live(), condition)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [row.run_id for row in rows if Run.FromString(row.head).spec.profile in profiles]


def _is_live() -> ColumnElement[bool]:
    return tables.runs.c.state.not_in(sorted(TERMINAL_STATES))

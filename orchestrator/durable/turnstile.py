"""Which runs wait, and who takes up which: the queue as it stands in the database.

Runs are taken up one transaction at a time in all processes, so that no bound is passed. What
this process drives is the run queue's.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence

from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import ColumnElement, and_, func, or_, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from orchestrator import tables
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.runs.children.store import ids_below
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import QUEUE_CHANNEL

STOP_CHANNEL = "fathom_stop"
"""Where PostgreSQL tells which runs are to stop."""
_TAKE_LOCK = 0x66617468_6F6E
"""Key of PostgreSQL's advisory lock under which runs are taken up."""
_OUTSIDE_ROWS = 500
"""Runs that take no place and are taken up at a time."""
_LIVE = (Run.STATE_QUEUED, Run.STATE_RUNNING)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A run that waits."""

    run_id: str
    """The run."""
    tenant: str
    """Whose."""
    places: int
    """Places that it takes."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """A run that this process has taken up."""

    tenant: str
    """Whose."""
    record: RunRecord
    """The run."""
    epoch: int
    """How often it was taken up, this time included."""
    places: int
    """Places that it takes."""
    is_stop_wished: bool
    """A caller has asked for it to stop."""


class Turnstile:
    """The queue, for one executor."""

    def __init__(self, database: Database, executor_id: str, *, per_tenant_max: int) -> None:
        self._database = database
        self._executor_id = executor_id
        self._per_tenant_max = per_tenant_max
        self._audit = AuditLog(database)

    async def take(self, free: int, *, only_stopped: bool = False) -> list[Taken]:
        """Take up runs for at most `free` places, and those that take none; return them. With
        `only_stopped`, only those that are to stop.

        Between tenants, the one with the fewest runs under way comes first; within one, runs that
        were begun, then by priority and age.
        """
        async with self._database.writing() as connection:
            if self._database.is_shared:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_TAKE_LOCK})"))
            if not await self._is_alive(connection):
                return []
            waiting = await _waiting(connection, free, only_stopped=only_stopped)
            if not waiting:
                return []
            busy = await _busy(connection)
            chosen = choose(waiting, busy, free=free, per_tenant_max=self._per_tenant_max)
            return await self._take(connection, chosen)

    async def release(self, run_id: str, epoch: int) -> None:
        """Let a run that has not ended wait again."""
        runs = tables.runs
        change = update(runs).where(runs.c.run_id == run_id, runs.c.epoch == epoch, _is_live())
        async with self._database.writing() as connection:
            await connection.execute(change.values(owner=None))
            await self._tell(connection, QUEUE_CHANNEL)

    async def wish_stop(
        self, run_id: str, *, only_below: bool = False, deed: Deed | None = None
    ) -> list[str]:
        """Note that a run and all below it are to stop, whoever drives them, or `only_below` it;
        return those of which nobody has wished that before. `deed` goes into the audit log with
        the wish.

        At once: runs that are told one after the other start others meanwhile.
        """
        runs = tables.runs.c
        is_meant: ColumnElement[bool] = runs.run_id.in_(ids_below(run_id))
        if not only_below:
            is_meant = or_(runs.run_id == run_id, is_meant)
        async with self._database.writing() as connection:
            wished = await _locked(connection, is_meant, _is_live(), runs.is_stop_wished.is_(False))
            change = update(tables.runs).where(runs.run_id.in_(wished))
            await connection.execute(change.values(is_stop_wished=True))
            for each in wished:
                await self._tell(connection, STOP_CHANNEL, each)
            if wished:
                await self._tell(connection, QUEUE_CHANNEL)
            if deed is not None:
                await self._audit.add_within(connection, [deed])
        return wished

    async def let_overdue_through(self) -> None:
        """Have runs that wait to go on and have no time left take no place: there is nothing but
        their end to do, which is not to wait for other runs."""
        runs = tables.runs
        waits = and_(runs.c.state == Run.STATE_RUNNING, runs.c.owner.is_(None), runs.c.places > 0)
        async with self._database.reading() as connection:
            rows = await connection.execute(select(runs.c.head, runs.c.progress).where(waits))
            records = [
                RunRecord(Run.FromString(row.head), Run.FromString(row.progress)) for row in rows
            ]
        overdue = [record.run_id for record in records if record.ends_s <= time.time()]
        if overdue:
            async with self._database.writing() as connection:
                change = update(runs).where(
                    runs.c.run_id.in_(await _locked(connection, runs.c.run_id.in_(overdue), waits))
                )
                await connection.execute(change.values(places=0))

    async def stopped(self) -> list[str]:
        """Return the runs of this executor that are to stop."""
        runs = tables.runs.c
        query = select(runs.run_id).where(
            _is_live(), runs.owner == self._executor_id, runs.is_stop_wished
        )
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def waiting_counts(self, tenant: str) -> tuple[int, int]:
        """Return how many runs wait for a place: of a tenant, and of all."""
        runs = tables.runs.c
        query = select(func.count().filter(runs.tenant == tenant), func.count()).where(
            runs.state == Run.STATE_QUEUED, runs.owner.is_(None), runs.places > 0
        )
        async with self._database.reading() as connection:
            own, of_all = (await connection.execute(query)).one()
            return own, of_all

    async def _is_alive(self, connection: AsyncConnection) -> bool:
        """True while this executor has a lease: what it took without one would be free at once."""
        executors = tables.executors.c
        query = select(executors.executor_id).where(executors.executor_id == self._executor_id)
        return (await connection.execute(query)).first() is not None

    async def _take(self, connection: AsyncConnection, chosen: Sequence[str]) -> list[Taken]:
        runs = tables.runs
        is_free = and_(runs.c.run_id.in_(chosen), runs.c.owner.is_(None), _is_live())
        change = (
            update(runs)
            .where(runs.c.run_id.in_(await _locked(connection, is_free)))
            .values(owner=self._executor_id, epoch=runs.c.epoch + 1)
            .returning(
                *(runs.c.run_id, runs.c.tenant, runs.c.head, runs.c.progress),
                *(runs.c.epoch, runs.c.places, runs.c.is_stop_wished),
            )
        )
        taken = {row.run_id: row for row in await connection.execute(change)}
        return [
            Taken(
                tenant=row.tenant,
                record=RunRecord(Run.FromString(row.head), Run.FromString(row.progress)),
                epoch=row.epoch,
                places=row.places,
                is_stop_wished=row.is_stop_wished,
            )
            for row in (taken[run_id] for run_id in chosen if run_id in taken)
        ]

    async def _tell(self, connection: AsyncConnection, channel: str, payload: str = "") -> None:
        if self._database.is_shared:
            await connection.execute(select(func.pg_notify(channel, payload)))


def choose(
    waiting: Sequence[Waiting], busy: Mapping[str, int], *, free: int, per_tenant_max: int
) -> list[str]:
    """Return the runs to take up, out of those that wait, each tenant's in their order.

    `busy` is how many places each tenant's runs take. Runs that take none are always chosen.
    """
    chosen = [run.run_id for run in waiting if not run.places]
    lines: dict[str, collections.deque[str]] = {}
    for run in waiting:
        if run.places:
            lines.setdefault(run.tenant, collections.deque()).append(run.run_id)
    taken = {tenant: busy.get(tenant, 0) for tenant in lines}
    while free > 0:
        ready = [tenant for tenant, line in lines.items() if line]
        ready = [tenant for tenant in ready if taken[tenant] < per_tenant_max]
        if not ready:
            break
        tenant = min(ready, key=lambda each: (taken[each], lines[each][0]))
        chosen.append(lines[tenant].popleft())
        taken[tenant] += 1
        free -= 1
    return chosen


async def _locked(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> list[str]:
    """Return runs to change, locked in the order in which everybody locks several: else two
    processes would wait for one another."""
    runs = tables.runs.c
    query = select(runs.run_id).where(*conditions).order_by(runs.run_id).with_for_update()
    return list((await connection.execute(query)).scalars())


def _is_live() -> ColumnElement[bool]:
    return tables.runs.c.state.in_(_LIVE)


async def _waiting(connection: AsyncConnection, free: int, *, only_stopped: bool) -> list[Waiting]:
    """Return all runs that wait and take no place, and of each tenant as many as could be taken
    up. One that is to stop takes none: it ends at once."""
    runs = tables.runs.c
    is_outside = or_(runs.places == 0, runs.is_stop_wished)
    order = (runs.state.desc(), runs.priority.desc(), runs.run_id)
    rank = func.row_number().over(partition_by=(runs.tenant, is_outside), order_by=order)
    ranked = (
        select(runs.run_id, runs.tenant, is_outside.label("is_outside"), rank.label("rank"))
        .where(_is_live(), runs.owner.is_(None), runs.is_stop_wished if only_stopped else true())
        .subquery()
    )
    query = (
        select(ranked.c.run_id, ranked.c.tenant, ranked.c.is_outside)
        .where(
            or_(
                ranked.c.rank <= free,
                and_(ranked.c.is_outside, ranked.c.rank <= _OUTSIDE_ROWS),
            )
        )
        .order_by(ranked.c.rank)
    )
    rows = await connection.execute(query)
    return [Waiting(row.run_id, row.tenant, 0 if row.is_outside else 1) for row in rows]


async def _busy(connection: AsyncConnection) -> dict[str, int]:
    runs = tables.runs.c
    query = (
        select(runs.tenant, func.sum(runs.places))
        .where(_is_live(), runs.owner.is_not(None))
        .group_by(runs.tenant)
    )
    return {tenant: int(places) for tenant, places in await connection.execute(query)}

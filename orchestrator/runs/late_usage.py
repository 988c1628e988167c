"""What calls of a run took that became known after its end: added to the run as it is stored, to
the runs above it that count it, and to its conversation. The events of a run stay as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_event_pb2 import UsageSettled
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from orchestrator import tables
from orchestrator.conversations.store import count_late
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.operations.run_books import ENDED
from orchestrator.runs.amounts import add_usage, is_nothing
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord

_late, _runs, _children = tables.late_usage, tables.runs, tables.child_runs


@dataclasses.dataclass(frozen=True)
class DueRun:
    """A run whose usage is to be looked at."""

    tenant: str
    """Whose."""
    record: RunRecord
    """The run."""


class LateUsage:
    """The runs of every tenant whose usage is looked at after their end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = AuditLog(database)

    async def claim(self, *, now_us: int, until_us: int, count: int) -> list[DueRun]:
        """Return some runs that are due, which nobody else is given before `until_us`."""
        query = (
            select(_late.c.run_id)
            .where(_late.c.due_us <= now_us)
            .order_by(_late.c.due_us)
            .limit(count)
        )
        async with self._database.reading() as connection:
            due = list((await connection.execute(query)).scalars())
        if not due:
            return []
        free = (
            select(_late.c.run_id)
            .where(_late.c.run_id.in_(due), _late.c.due_us <= now_us)
            .order_by(_late.c.run_id)  # as everybody locks several
            .with_for_update()
        )
        async with self._database.writing() as connection:
            ours = list((await connection.execute(free)).scalars())
            claim = update(_late).where(_late.c.run_id.in_(ours))
            await connection.execute(claim.values(due_us=until_us))
        runs = select(_runs.c.tenant, _runs.c.head, _runs.c.progress).where(
            _runs.c.run_id.in_(ours)
        )
        async with self._database.reading() as connection:
            return [DueRun(row.tenant, _record(row)) for row in await connection.execute(runs)]

    async def look_again(self, run_id: str, *, at_us: int | None) -> None:
        """Have a run looked at again, or never where that is None."""
        row = _late.c.run_id == run_id
        change = delete(_late) if at_us is None else update(_late).values(due_us=at_us)
        async with self._database.writing() as connection:
            await connection.execute(change.where(row, _late.c.due_us.is_not(None)))

    async def is_at_rest(self, due: DueRun) -> bool:
        """Whether the whole tree of a run has ended and is in the books, so that nobody else
        changes what is stored of it."""
        root_id = due.record.head.root.removeprefix("runs/")
        below = select(_children.c.run_id).where(_children.c.root_id == root_id)
        is_of_tree = (_runs.c.run_id == root_id) | _runs.c.run_id.in_(below)
        moves = select(_runs.c.run_id).where(is_of_tree, _runs.c.booked != ENDED).limit(1)
        async with self._database.reading() as connection:
            return (await connection.execute(moves)).first() is None

    async def add(self, due: DueRun, settled: UsageSettled) -> Usage | None:
        """Add what was found, and with it child runs that the run has not counted, and have the run
        looked at no more; return what was added. None where somebody else has done so.

        The run's tree must be at rest.
        """
        run_id = due.record.run_id
        async with self._database.writing() as connection:
            row = _late.c.run_id == run_id
            mark = update(_late).where(row, _late.c.due_us.is_not(None)).values(due_us=None)
            if not (await connection.execute(mark)).rowcount:
                return None
            chain = await _chain(connection, run_id)
            uncounted = await _uncounted(connection, run_id)
            records = await _locked(connection, {*chain, *uncounted})
            if run_id not in records:  # deleted just then
                return None
            added, sub_calls = Usage(), 0
            for each in settled.usages:
                add_usage(added, each.usage)
            for child_id in records.keys() & set(await _uncounted(connection, run_id)):
                add_usage(added, records[child_id].progress.usage)
                sub_calls += records[child_id].progress.sub_calls
            counting = [
                records[each] for each in await _counting(connection, chain) if each in records
            ]
            records[run_id].progress.usage_incomplete = False
            for record in counting:
                add_usage(record.progress.usage, added)
                record.progress.sub_calls += sub_calls
                await _store(connection, record)
            await _count(connection, run_id)
            if settled.usages:
                kept = update(_late).where(row).values(settled=settled.SerializeToString())
                await connection.execute(kept)
            else:
                await connection.execute(delete(_late).where(row))
            if not (is_nothing(added) and not sub_calls):
                top = counting[-1].head
                await count_late(connection, due.tenant, top, added, sub_calls)
                await self._audit.add_within(
                    connection, [_deed(due.tenant, record, added) for record in counting]
                )
        return added

    async def settled(self, run_ids: Collection[str]) -> Mapping[str, UsageSettled]:
        """Return what was found of these runs beyond their events."""
        query = select(_late.c.run_id, _late.c.settled).where(
            _late.c.run_id.in_(sorted(run_ids)), _late.c.settled.is_not(None)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return {row.run_id: UsageSettled.FromString(row.settled) for row in rows}


async def _chain(connection: AsyncConnection, run_id: str) -> list[str]:
    """Return a run and those above it, up to the root."""
    chain = [run_id]
    parent = select(_children.c.parent_id)
    while above := (
        await connection.execute(parent.where(_children.c.run_id == chain[-1]))
    ).scalar():
        chain.append(above)
    return chain


async def _uncounted(connection: AsyncConnection, run_id: str) -> list[str]:
    """Return the children of a run that it does not count."""
    query = select(_children.c.run_id).where(
        _children.c.parent_id == run_id, _children.c.is_booked.is_(False)
    )
    return list((await connection.execute(query)).scalars())


async def _counting(connection: AsyncConnection, chain: list[str]) -> list[str]:
    """Return the runs of a chain that count the first: each one that the one above has booked."""
    query = select(_children.c.run_id).where(
        _children.c.run_id.in_(chain), _children.c.is_booked.is_(True)
    )
    booked = set((await connection.execute(query)).scalars())
    counting = chain[:1]
    for below, above in itertools.pairwise(chain):
        if below not in booked:
            break
        counting.append(above)
    return counting


async def _locked(connection: AsyncConnection, run_ids: Collection[str]) -> dict[str, RunRecord]:
    """Return runs that nobody else changes until the transaction ends, locked in the order in which
    everybody locks several."""
    query = (
        select(_runs.c.run_id, _runs.c.head, _runs.c.progress)
        .where(_runs.c.run_id.in_(sorted(run_ids)))
        .order_by(_runs.c.run_id)
        .with_for_update()
    )
    return {row.run_id: _record(row) for row in await connection.execute(query)}


async def _store(connection: AsyncConnection, record: RunRecord) -> None:
    """Store a run that has ended, and what the statistics have of it."""
    progress, facts = record.progress, tables.run_facts
    assert progress.state in TERMINAL_STATES
    await connection.execute(
        update(_runs)
        .where(_runs.c.run_id == record.run_id)
        .values(progress=progress.SerializeToString())
    )
    await connection.execute(
        update(facts)
        .where(facts.c.run_id == record.run_id)
        .values(
            sub_calls=progress.sub_calls,
            input_tokens=progress.usage.input_tokens,
            output_tokens=progress.usage.output_tokens,
            cost_usd_nanos=progress.usage.cost_usd_nanos,
        )
    )


async def _count(connection: AsyncConnection, run_id: str) -> None:
    """Note that a run counts all its children."""
    change = update(_children).where(_children.c.parent_id == run_id)
    await connection.execute(change.values(is_booked=True))


def _deed(tenant: str, record: RunRecord, added: Usage) -> Deed:
    return Deed(
        tenant=tenant,
        actor="",
        action="run.usage_settled",
        subject=record.head.name,
        details={
            "added_usd_nanos": str(added.cost_usd_nanos),
            "cost_usd_nanos": str(record.progress.usage.cost_usd_nanos),
        },
    )


def _record(row: Any) -> RunRecord:
    return RunRecord(Run.FromString(row.head), Run.FromString(row.progress))

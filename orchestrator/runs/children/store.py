"""Child runs in the database: who is whose child, and what is kept for each of them.

A child is stored in the transaction that reads what its parent has left, under a lock on the
parent: no two children get the same part, and none is stored of a parent that has ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_pb2 import Limits, Run
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import NotFoundError
from orchestrator import tables
from orchestrator.errors import ChildRunRefusedError
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.children.carving import Left, Part, time_for_children_s
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord
from orchestrator.runs.log.store import add_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewChild:
    """A child that is to be stored, once its part is known."""

    request_id: str
    """Of the call that starts it."""
    lineage: Lineage
    """The runs above it."""
    sub_calls_left: int
    """Sub-calls that its parent's session may still make."""
    part: Callable[[Limits, Left], Part | None]
    """Says what it gets, of its parent's limits and what is left; None for it to wait."""
    record: Callable[[Limits], RunRecord]
    """Makes the run of its limits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a child run besides the run itself."""

    run_id: str
    """The child."""
    root_id: str
    """The root of its tree."""


@dataclasses.dataclass(frozen=True)
class ChildCounts:
    """How many child runs a run has."""

    live: int = 0
    """That have not ended."""
    all: int = 0
    """At all."""


class ChildStore:
    """The child runs of every tenant."""

    def __init__(self, database: Database, *, per_tree_max: int) -> None:
        """No run may have more than `per_tree_max` runs below it in its whole life."""
        self._database = database
        self._per_tree_max = per_tree_max

    async def find(self, tenant: str, request_id: str) -> Known | None:
        """Return the child that a call started before."""
        table = tables.child_runs.c
        query = select(table.run_id, table.root_id).where(
            table.tenant == tenant, table.request_id == request_id
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else Known(run_id=row.run_id, root_id=row.root_id)

    async def add(self, tenant: str, child: NewChild) -> RunRecord | None:
        """Store a child with its part of what its parent has left; None where it has to wait.

        Raises NotFoundError, ChildRunRefusedError, what `child.part` raises, and IntegrityError
        where the same call has just stored one.
        """
        parent_name = child.lineage.parent
        async with self._database.writing() as connection:
            parent = await _locked(connection, tenant, parent_name.removeprefix("runs/"))
            if parent is None or parent.progress.state in TERMINAL_STATES:
                raise ChildRunRefusedError(parent_name, "the run has ended, or is to stop")
            await self._check_tree(connection, child.lineage)
            left = await _left(connection, parent, child)
            part = child.part(parent.head.spec.limits, left)
            if part is None:
                return None
            record = child.record(part.limits)
            await add_run(connection, tenant, record, record.state_event())
            limits = part.limits
            await connection.execute(
                tables.child_runs.insert().values(
                    run_id=record.run_id,
                    tenant=tenant,
                    parent_id=parent.run_id,
                    root_id=child.lineage.root.removeprefix("runs/"),
                    request_id=child.request_id,
                    lineage=child.lineage.to_json(),
                    tokens_reserved=limits.tokens_max,
                    cost_usd_nanos_reserved=limits.cost_usd_nanos_max,
                    sub_calls_reserved=limits.sub_calls_max,
                    live_reserved=part.live,
                )
            )
            return record

    async def _check_tree(self, connection: AsyncConnection, lineage: Lineage) -> None:
        root_id = lineage.root.removeprefix("runs/")
        query = select(func.count()).where(tables.child_runs.c.root_id == root_id)
        if ((await connection.execute(query)).scalar() or 0) >= self._per_tree_max:
            why = f"{self._per_tree_max} were started below {lineage.root}, which is as many as may"
            raise ChildRunRefusedError(
                lineage.parent, f"{why}; use llm_query", limit="children_per_tree_max"
            )

    async def lineage(self, run_id: str) -> Lineage:
        """Return what is above a child run; raises NotFoundError for a run that is none."""
        table = tables.child_runs.c
        query = select(table.lineage).where(table.run_id == run_id)
        async with self._database.reading() as connection:
            values = (await connection.execute(query)).scalar()
        if values is None:
            raise NotFoundError(f"runs/{run_id}")
        return Lineage.from_json(values)

    async def close(self, run_id: str) -> None:
        """Have a run take no further child: it is about to end."""
        change = update(tables.runs).where(tables.runs.c.run_id == run_id)
        async with self._database.writing() as connection:
            await connection.execute(change.values(takes_children=False))

    async def unbooked(self, tenant: str, run_id: str) -> list[tuple[str, RunRecord]]:
        """Return the children of a run whose end it has not told, oldest first, with the request
        ids of the calls that started them."""
        children = tables.child_runs.c
        query = (
            select(children.request_id, tables.runs.c.head, tables.runs.c.progress)
            .join(tables.child_runs, children.run_id == tables.runs.c.run_id)
            .where(children.tenant == tenant, children.parent_id == run_id)
            .where(children.is_booked.is_(False))
            .order_by(children.run_id)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [(row.request_id, _record(row)) for row in rows]

    async def counts(self, run_id: str) -> ChildCounts:
        """Return how many children a run has."""
        runs, children = tables.runs.c, tables.child_runs.c
        is_live = runs.state.not_in(sorted(TERMINAL_STATES))
        query = (
            select(func.count().filter(is_live), func.count())
            .select_from(tables.child_runs)
            .join(tables.runs, runs.run_id == children.run_id)
            .where(children.parent_id == run_id)
        )
        async with self._database.reading() as connection:
            live, whole = (await connection.execute(query)).one()
        return ChildCounts(live, whole)

    async def spent_below(self, run_id: str) -> tuple[Usage, int]:
        """Return what the children of a run have spent that the run itself does not count yet,
        with all below them, and their sub-calls."""
        usage, sub_calls = Usage(), 0
        async with self._database.reading() as connection:
            rows = await connection.execute(_not_counted(run_id))
            for (data,) in rows:
                progress = Run.FromString(data)
                add_usage(usage, progress.usage)
                sub_calls += progress.sub_calls
        return usage, sub_calls

    async def tree(self, tenant: str, run_id: str) -> list[RunRecord]:
        """Return a run and all below it, oldest first; raises NotFoundError."""
        runs = tables.runs.c
        query = (
            select(runs.head, runs.progress)
            .where(runs.tenant == tenant)
            .where((runs.run_id == run_id) | runs.run_id.in_(ids_below(run_id)))
            .order_by(runs.run_id)
        )
        async with self._database.reading() as connection:
            found = [_record(row) for row in await connection.execute(query)]
        if not found:
            raise NotFoundError(f"runs/{run_id}")
        return found

    async def turns_below(self, tenant: str, run_id: str) -> dict[str, int]:
        """Return for each run below a run the turn of that run in which it, or what is above it,
        was started."""
        children = tables.child_runs.c
        query = select(children.run_id, children.parent_id, children.request_id).where(
            children.tenant == tenant, children.run_id.in_(ids_below(run_id))
        )
        async with self._database.reading() as connection:
            rows = {row.run_id: row for row in await connection.execute(query)}
        turns: dict[str, int] = {}
        for child_id, row in rows.items():
            # Not by the order of ids: the clocks of two processes differ.
            while row.parent_id != run_id:
                row = rows[row.parent_id]
            turns[child_id] = int(row.request_id.split("/")[1])
        return turns


def is_repeat(error: IntegrityError) -> bool:
    """Whether a child could not be stored since the same call has stored one."""
    return "child_runs" in str(error.orig)


async def _locked(connection: AsyncConnection, tenant: str, run_id: str) -> RunRecord | None:
    """Return a run that nobody else changes until the transaction ends; None for one that takes no
    children any more, or was told to stop. Raises NotFoundError."""
    runs = tables.runs.c
    query = (
        select(runs.head, runs.progress, runs.takes_children, runs.is_stop_wished)
        .where(runs.tenant == tenant, runs.run_id == run_id)
        .with_for_update()
    )
    row = (await connection.execute(query)).first()
    if row is None:
        raise NotFoundError(f"runs/{run_id}")
    return _record(row) if row.takes_children and not row.is_stop_wished else None


async def _left(connection: AsyncConnection, parent: RunRecord, child: NewChild) -> Left:
    """Return what a parent has left, its row being locked."""
    children, runs = tables.child_runs.c, tables.runs.c
    is_live = runs.state.not_in(sorted(TERMINAL_STATES))
    query = (
        select(
            func.coalesce(func.sum(children.tokens_reserved), 0),
            func.coalesce(func.sum(children.cost_usd_nanos_reserved), 0),
            func.coalesce(func.sum(children.sub_calls_reserved), 0),
            func.coalesce(func.sum(children.live_reserved).filter(is_live), 0),
        )
        .join(tables.runs, runs.run_id == children.run_id)
        .where(children.parent_id == parent.run_id, children.is_booked.is_(False))
    )
    tokens, cost, sub_calls, live = (await connection.execute(query)).one()
    limits, spent = parent.head.spec.limits, parent.progress
    tokens_max, cost_max = child.lineage.parent_allowance
    elapsed_s = time.time() - spent.start_time.ToNanoseconds() / 1e9
    left_calls = min(limits.sub_calls_max - spent.sub_calls, child.sub_calls_left)
    return Left(
        tokens=_or(tokens_max, limits.tokens_max)
        - spent.usage.input_tokens
        - spent.usage.output_tokens
        - int(tokens),
        cost_usd_nanos=_or(cost_max, limits.cost_usd_nanos_max)
        - spent.usage.cost_usd_nanos
        - int(cost),
        sub_calls=left_calls - int(sub_calls),
        time_s=time_for_children_s(limits.time_max.ToNanoseconds() / 1e9, elapsed_s),
        live=limits.children_live_max - int(live),
    )


def _or(value: int | None, other: int) -> int:
    return other if value is None else value


def ids_below(run_id: str) -> Any:
    """Return the ids of all runs below one, as a subquery."""
    children = tables.child_runs.c
    tree = select(children.run_id).where(children.parent_id == run_id).cte(recursive=True)
    tree = tree.union(select(children.run_id).where(children.parent_id == tree.c.run_id))
    return select(tree.c.run_id)


def _not_counted(run_id: str) -> Any:
    """Return the progress of the runs below one that are counted by none above them: each child
    counts what is below it as far as it has booked it."""
    children, runs = tables.child_runs.c, tables.runs.c
    tree = (
        select(children.run_id)
        .where(children.parent_id == run_id, children.is_booked.is_(False))
        .cte(recursive=True)
    )
    tree = tree.union(
        select(children.run_id).where(
            children.parent_id == tree.c.run_id, children.is_booked.is_(False)
        )
    )
    return select(runs.progress).where(runs.run_id.in_(select(tree.c.run_id)))


def _record(row: Any) -> RunRecord:
    return RunRecord(Run.FromString(row.head), Run.FromString(row.progress))

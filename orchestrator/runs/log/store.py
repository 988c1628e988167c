"""Runs, their events and remembered request ids in the database."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import BigInteger, Connection, bindparam, delete, func, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import NotFoundError, RequestIdReusedError
from orchestrator import tables
from orchestrator.contexts.store import hold_context
from orchestrator.conversations.conversation import Seat
from orchestrator.conversations.store import take_seat
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord

REQUEST_IDS_KEPT_S = 24 * 3600.0
_ROWS_AT_ONCE = 16
EVENTS_CHANNEL = "fathom_events"
"""Where PostgreSQL tells which runs have further events."""
QUEUE_CHANNEL = "fathom_queue"
"""Where PostgreSQL tells that a run waits, or that a place is free."""
_NOTIFIED_AT_ONCE = 200
"""Ids of runs that fit the 8,000 bytes of a notification."""
# Each event of each run needs these three: making them anew took longer than SQLite does.
_PROGRESS = (
    update(tables.runs)
    .where(
        tables.runs.c.run_id == bindparam("of_run"), tables.runs.c.epoch == bindparam("of_epoch")
    )
    .values(state=bindparam("new_state"), progress=bindparam("new_progress"))
)
_NEWEST = select(func.max(tables.run_events.c.sequence)).where(
    tables.run_events.c.run_id == bindparam("of_run")
)
_EVENTS = tables.run_events.insert()


@dataclasses.dataclass(frozen=True)
class RequestKey:
    """What makes a repeated CreateRun the same request."""

    request_id: str
    """The caller's."""
    digest: bytes
    """Of the spec as it came."""


@dataclasses.dataclass(frozen=True)
class Appendage:
    """Events to add to a run, and the run as it is with the last of them."""

    run_id: str
    """The run."""
    epoch: int
    """When its driver took it up: what is appended later than another did is refused."""
    state: int
    """Of the run."""
    progress: bytes
    """The run's changing part."""
    events: Sequence[tuple[int, bytes]]
    """Sequence and serialized event; without gaps."""
    ended_children: Sequence[str] = ()
    """Child runs whose end these events tell."""
    usage_due_s: float | None = None
    """How long after these, which tell of the run's end, its usage is to be looked at once more;
    None for never."""


class RunStore:
    """The runs of every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        tenant: str,
        record: RunRecord,
        event: RunEvent,
        key: RequestKey | None,
        seat: Seat | None = None,
        taken: Sequence[RunEvent] = (),
    ) -> RunRecord:
        """Store a new run with its first event, and in a conversation where it has a seat there;
        return it, or the run that the same request made before. `taken` are the events after the
        first that a fork begins with.

        Raises RequestIdReusedError, and ConversationBusyError and NotFoundError where the seat is
        no longer free.
        """
        try:
            async with self._database.writing() as connection:
                if key is not None:
                    await connection.execute(_forget(tenant, key))
                    await connection.execute(_remember(tenant, key, record.run_id))
                if seat is not None:
                    await take_seat(connection, tenant, seat, record.run_id)
                await add_run(connection, tenant, record, event)
                if taken:
                    rows = [_event_row(record.run_id, each) for each in taken]
                    await connection.execute(tables.run_events.insert(), rows)
        except IntegrityError:
            earlier = await self.find_request(tenant, key) if key is not None else None
            if earlier is None:
                raise
            return earlier
        return record

    async def find_request(self, tenant: str, key: RequestKey) -> RunRecord | None:
        """Return the run that a request made before; raises RequestIdReusedError."""
        table = tables.run_requests.c
        query = select(table.digest, table.run_id).where(
            table.tenant == tenant,
            table.request_id == key.request_id,
            table.created_us >= _forgotten_before_us(),
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            return None
        if row.digest != key.digest:
            raise RequestIdReusedError(key.request_id)
        return await self.get(tenant, row.run_id)

    async def get(self, tenant: str, run_id: str) -> RunRecord:
        """Return a run as it is stored; raises NotFoundError."""
        table = tables.runs.c
        query = select(tables.runs).where(table.tenant == tenant, table.run_id == run_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"runs/{run_id}")
        return _record(row)

    async def newest(
        self,
        tenant: str,
        *,
        states: Sequence[int],
        before: str,
        count: int,
        bytes_max: int,
        parent_id: str = "",
    ) -> list[RunRecord]:
        """Return runs from the newest on, in one of `states` unless that is empty; `before` is
        the id of the last one seen, or empty. At most `count`, and at most one more than
        `bytes_max` holds. They are the children of `parent_id`, else runs without a parent."""
        table = tables.runs.c
        query = select(tables.runs).where(table.tenant == tenant)
        query = query.where(
            table.parent_id == parent_id if parent_id else table.parent_id.is_(None)
        )
        if states:
            query = query.where(table.state.in_(states))
        if before:
            query = query.where(table.run_id < before)
        query = query.order_by(table.run_id.desc()).limit(count)
        found: list[RunRecord] = []
        query = query.execution_options(yield_per=_ROWS_AT_ONCE)
        async with self._database.reading() as connection, connection.stream(query) as rows:
            async for row in rows.mappings():
                bytes_max -= len(row["head"]) + len(row["progress"])
                found.append(_record(row))
                if bytes_max < 0 and len(found) > 1:
                    break
        return found

    async def append(
        self, batch: Sequence[Appendage], *, is_repeated: bool = False
    ) -> frozenset[str]:
        """Store events of several runs in one transaction; return the runs of which nothing was
        stored, since another executor has taken them up.

        `is_repeated` says that the same was tried before and may be stored in part: whole runs of
        it, of which nothing is stored twice.
        """
        # In one order everywhere, so that two processes never wait for one another.
        ordered = sorted(batch, key=lambda each: each.run_id)
        is_shared = self._database.is_shared

        def work(connection: Connection) -> frozenset[str]:
            lost = frozenset(
                each.run_id
                for each in ordered
                if not _append(connection, each, is_repeated=is_repeated)
            )
            if is_shared:
                _notify(connection, [each.run_id for each in ordered])
            return lost

        return await self._database.transact(work)

    async def has_ended(self, run_id: str) -> bool:
        """True where a run is in a terminal state, or is none."""
        query = select(tables.runs.c.state).where(tables.runs.c.run_id == run_id)
        async with self._database.reading() as connection:
            state = (await connection.execute(query)).scalar()
        return state is None or state in TERMINAL_STATES

    async def ended_among(self, run_ids: Collection[str]) -> frozenset[str]:
        """Return those runs that have ended."""
        table = tables.runs.c
        is_over = table.state.in_(sorted(TERMINAL_STATES))
        query = select(table.run_id).where(table.run_id.in_(sorted(run_ids)), is_over)
        async with self._database.reading() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def forget_requests(self) -> int:
        """Delete the request ids that need not be remembered any longer; return how many."""
        table = tables.run_requests
        old = delete(table).where(table.c.created_us < _forgotten_before_us())
        async with self._database.writing() as connection:
            return (await connection.execute(old)).rowcount

    async def events(self, run_id: str, *, after: int, count: int) -> list[RunEvent]:
        """Return events with a larger sequence than `after`, in order."""
        table = tables.run_events.c
        query = (
            select(table.event)
            .where(table.run_id == run_id, table.sequence > after)
            .order_by(table.sequence)
            .limit(count)
        )
        async with self._database.reading() as connection:
            return [RunEvent.FromString(data) for (data,) in await connection.execute(query)]


def _event_row(run_id: str, event: RunEvent) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "sequence": event.sequence,
        "event": event.SerializeToString(),
    }


def _record(row: Mapping[Any, Any]) -> RunRecord:
    return RunRecord(Run.FromString(row["head"]), Run.FromString(row["progress"]))


def _forgotten_before_us() -> int:
    return int((time.time() - REQUEST_IDS_KEPT_S) * 1e6)


async def add_run(
    connection: AsyncConnection, tenant: str, record: RunRecord, event: RunEvent
) -> None:
    """Add a new run with its first event, within the caller's transaction; raises NotFoundError
    where its context is gone, which the run keeps until it has ended."""
    context_id = record.head.spec.context.removeprefix("contexts/")
    if context_id:
        await hold_context(connection, tenant, context_id)
    await connection.execute(
        tables.runs.insert().values(
            run_id=record.run_id,
            tenant=tenant,
            context_id=context_id or None,
            state=record.progress.state,
            head=record.head.SerializeToString(),
            progress=record.progress.SerializeToString(),
            priority=record.head.spec.priority,
            places=0 if record.head.parent else 1,
            parent_id=record.head.parent.removeprefix("runs/") or None,
        )
    )
    await connection.execute(tables.run_events.insert().values(**_event_row(record.run_id, event)))
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_notify(QUEUE_CHANNEL, "")))


def _append(connection: Connection, appendage: Appendage, *, is_repeated: bool) -> bool:
    row = {
        "of_run": appendage.run_id,
        "of_epoch": appendage.epoch,
        "new_state": appendage.state,
        "new_progress": appendage.progress,
    }
    if not connection.execute(_PROGRESS, row).rowcount:
        return False
    events = appendage.events
    if is_repeated:
        last = connection.execute(_NEWEST, {"of_run": appendage.run_id}).scalar() or 0
        events = [(sequence, data) for sequence, data in events if sequence > last]
    rows = [
        {"run_id": appendage.run_id, "sequence": sequence, "event": data}
        for sequence, data in events
    ]
    if rows:
        connection.execute(_EVENTS, rows)
    if appendage.ended_children:
        children = tables.child_runs
        connection.execute(
            update(children)
            .where(children.c.run_id.in_(appendage.ended_children))
            .where(children.c.parent_id == appendage.run_id)
            .values(is_booked=True)
        )
    if appendage.usage_due_s is not None:
        _look_later(connection, appendage.run_id, appendage.usage_due_s)
    return True


def _look_later(connection: Connection, run_id: str, due_s: float) -> None:
    """Note that a run's usage is to be looked at, unless that is noted."""
    late = tables.late_usage
    due_us = time.time_ns() // 1000 + int(due_s * 1e6)
    is_noted = select(late.c.run_id).where(late.c.run_id == run_id).exists()
    row = select(literal(run_id), literal(due_us, BigInteger)).where(~is_noted)
    connection.execute(late.insert().from_select(["run_id", "due_us"], row))


def _notify(connection: Connection, run_ids: Sequence[str]) -> None:
    """Wake the watchers in other processes, at the commit."""
    for start in range(0, len(run_ids), _NOTIFIED_AT_ONCE):
        payload = ",".join(run_ids[start : start + _NOTIFIED_AT_ONCE])
        connection.execute(select(func.pg_notify(EVENTS_CHANNEL, payload)))


def _forget(tenant: str, key: RequestKey) -> Any:
    """Return what frees a request id that is no longer remembered."""
    table = tables.run_requests
    return delete(table).where(
        table.c.tenant == tenant,
        table.c.request_id == key.request_id,
        table.c.created_us < _forgotten_before_us(),
    )


def _remember(tenant: str, key: RequestKey, run_id: str) -> Any:
    return tables.run_requests.insert().values(
        tenant=tenant,
        request_id=key.request_id,
        digest=key.digest,
        run_id=run_id,
        created_us=time.time_ns() // 1000,
    )

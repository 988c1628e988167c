"""Runs, their events and remembered request ids in the database."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError

from common.database import Database
from common.errors import NotFoundError, RequestIdReusedError
from orchestrator import tables
from orchestrator.runs.record import TERMINAL_STATES, RunRecord

REQUEST_IDS_KEPT_S = 24 * 3600.0
_ROWS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class RequestKey:
    """What makes a repeated CreateRun the same request."""

    request_id: str
    """The caller's."""
    digest: bytes
    """Of the spec as it came."""


class RunStore:
    """The runs of every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, tenant: str, record: RunRecord, event: RunEvent, key: RequestKey | None
    ) -> RunRecord:
        """Store a new run with its first event; return it, or the run that the same request
        made before. Raises RequestIdReusedError."""
        try:
            async with self._database.writing() as connection:
                if key is not None:
                    await connection.execute(_forget_old())
                    await connection.execute(_remember(tenant, key, record.run_id))
                await connection.execute(
                    tables.runs.insert().values(
                        run_id=record.run_id,
                        tenant=tenant,
                        state=record.progress.state,
                        head=record.head.SerializeToString(),
                        progress=record.progress.SerializeToString(),
                    )
                )
                await connection.execute(
                    tables.run_events.insert().values(**_event_row(record.run_id, event))
                )
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
        self, tenant: str, *, states: Sequence[int], before: str, count: int, bytes_max: int
    ) -> list[RunRecord]:
        """Return runs from the newest on, in one of `states` unless that is empty; `before` is
        the id of the last one seen, or empty. At most `count`, and at most one more than
        `bytes_max` holds."""
        table = tables.runs.c
        query = select(tables.runs).where(table.tenant == tenant)
        if states:
            query = query.where(table.state.in_(states))
        if before:
            query = query.where(table.run_id < before)
        query = query.order_by(table.run_id.desc()).limit(count)
        found: list[RunRecord] = []
        async with self._database.reading() as connection:
            rows = await connection.stream(query.execution_options(yield_per=_ROWS_AT_ONCE))
            async for row in rows.mappings():
                bytes_max -= len(row["head"]) + len(row["progress"])
                found.append(_record(row))
                if bytes_max < 0 and len(found) > 1:
                    break
        return found

    async def unfinished(self) -> list[RunRecord]:
        """Return every run that has not ended, oldest first."""
        table = tables.runs.c
        query = select(tables.runs).where(table.state.not_in(sorted(TERMINAL_STATES)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(table.run_id))).mappings()
            return [_record(row) for row in rows]

    async def append(self, batch: Mapping[str, tuple[RunRecord, Sequence[RunEvent]]]) -> None:
        """Store events of several runs, by id, and the runs as they are at the call, in one
        transaction."""
        events = [_event_row(run_id, e) for run_id, (_, events) in batch.items() for e in events]
        progress = [
            {
                "key": run_id,
                "state": record.progress.state,
                "progress": record.progress.SerializeToString(),
            }
            for run_id, (record, _) in batch.items()
        ]
        change = update(tables.runs).where(tables.runs.c.run_id == bindparam("key"))
        async with self._database.writing() as connection:
            await connection.execute(tables.run_events.insert(), events)
            await connection.execute(change, progress)

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


def _forget_old() -> Any:
    table = tables.run_requests
    return delete(table).where(table.c.created_us < _forgotten_before_us())


def _remember(tenant: str, key: RequestKey, run_id: str) -> Any:
    return tables.run_requests.insert().values(
        tenant=tenant,
        request_id=key.request_id,
        digest=key.digest,
        run_id=run_id,
        created_us=time.time_ns() // 1000,
    )

"""Runs in a database that end before all that they took is known, and a ledger that learns more."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import CallUsage, Usage
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import select

from common.config import Secret
from common.database import Database
from common.errors import ServiceError
from common.run_token import RunTokenSigner
from orchestrator import tables
from orchestrator.operations.audit_log import AuditLog
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.usage_sweep import UsageSweep
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.children.store import ChildStore
from orchestrator.runs.late_usage import LateUsage
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import Appendage, RunStore
from orchestrator.runs.ports import SettledCalls
from orchestrator.runs.settlement import Settlement
from tests.support.fake_gateway import TOKEN_KEY, ScriptedError

TIERS: dict[str, Any] = {"root_tier": "root", "sub_tier": "sub"}


def away() -> ServiceError:
    """Return the error of a gateway that cannot be reached."""
    return ScriptedError(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE)


def booked(run_id: str, turn: int, cost: int) -> CallUsage:
    """Return what a ledger has of a call of a turn, in nano-dollars."""
    usage = Usage(input_tokens=cost // 10, cost_usd_nanos=cost, calls=1)
    return CallUsage(request_id=f"{run_id}/{turn}", tier="root", model="models/a", usage=usage)


@dataclasses.dataclass
class Books:
    """A ledger that says this of each run, of whichever has something."""

    calls: dict[str, list[CallUsage]] = dataclasses.field(default_factory=dict)
    """By run."""
    open_calls: int = 0
    """Said to be under way still, of every run."""
    failure: Exception | None = None
    """Raised in place of an answer."""
    asked: list[str] = dataclasses.field(default_factory=list)
    """Each prefix that was asked for, in order."""

    async def settle_calls(self, prefix: str, **_: Any) -> SettledCalls:
        """Return what is known of a run's calls, or fail."""
        self.asked.append(prefix)
        if self.failure is not None:
            raise self.failure
        return SettledCalls(self.calls.get(prefix.removesuffix("/"), []), self.open_calls)


class Place:
    """A database with runs, and what looks at them again."""

    def __init__(self, database: Database) -> None:
        self.database, self.books = database, Books()
        self.runs, self.late = RunStore(database), LateUsage(database)
        self.children = ChildStore(database, per_tree_max=9)
        self.now_us = time.time_ns() // 1000
        settlement = Settlement(books=self.books, signer=RunTokenSigner(Secret(TOKEN_KEY)))
        self.sweep = UsageSweep(
            self.late, settlement, EventLog(self.runs), self, now_us=lambda: self.now_us
        ).sweep

    async def lineage(self, record: RunRecord) -> Lineage | None:
        """Return whose limits a run shares, where it has a parent."""
        return await self.children.lineage(record.run_id) if record.head.parent else None

    async def run(self, *, above: RunRecord | None = None, **spec: Any) -> RunRecord:
        """Store a run that is under way."""
        record = RunRecord.queued(RunSpec(question="q", **TIERS, **spec))
        record.progress.state, record.progress.turns = Run.STATE_RUNNING, 1
        record.progress.start_time.GetCurrentTime()
        if above is not None:
            record.head.parent, record.head.root = above.head.name, above.head.root
            lineage = Lineage(
                root=above.head.root,
                tokens_max=None,
                cost_usd_nanos_max=None,
                tokens_spent=0,
                cost_usd_nanos_spent=0,
                subtrees=(),
            )
            async with self.database.writing() as connection:
                await connection.execute(
                    tables.child_runs.insert().values(
                        run_id=record.run_id,
                        tenant="t",
                        parent_id=above.run_id,
                        root_id=above.head.root.removeprefix("runs/"),
                        request_id=f"{above.run_id}/1/1/c{record.run_id}",
                        lineage=lineage.to_json(),
                        tokens_reserved=0,
                        cost_usd_nanos_reserved=0,
                        sub_calls_reserved=0,
                        live_reserved=0,
                    )
                )
        return await self.runs.create("t", record, record.state_event(), None)

    async def end(self, record: RunRecord, *, cost: int, ended: tuple[RunRecord, ...] = ()) -> None:
        """End a run whose usage is doubtful, with what it knows of, and with children that it has
        counted in that."""
        progress = record.progress
        progress.state, progress.usage_incomplete = Run.STATE_ANSWERED, True
        progress.usage.cost_usd_nanos = cost
        progress.end_time.FromMicroseconds(self.now_us)
        event = record.state_event()
        told = Appendage(
            run_id=record.run_id,
            epoch=0,
            state=progress.state,
            progress=progress.SerializeToString(),
            events=[(event.sequence, event.SerializeToString())],
            ended_children=[child.run_id for child in ended],
            usage_due_s=20.0,
        )
        assert await self.runs.append([told]) == frozenset()

    async def due(self) -> None:
        """Keep the books, and let the time go by after which runs are looked at again."""
        while await RunBooks(self.database, AuditLog(self.database)).book():
            pass
        self.now_us += 60 * 1_000_000

    async def cost(self, record: RunRecord) -> tuple[int, bool]:
        """Return what a run says that it took, and whether that is not all."""
        progress = (await self.runs.get("t", record.run_id)).progress
        return progress.usage.cost_usd_nanos, progress.usage_incomplete

    async def looked_at_later(self) -> list[str]:
        """Return the runs that are not settled."""
        table = tables.late_usage.c
        query = select(table.run_id).where(table.due_us.is_not(None))
        async with self.database.reading() as connection:
            return list((await connection.execute(query)).scalars())

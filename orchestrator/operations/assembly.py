"""The parts for those who run the service, put together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Protocol

from common.database import Database
from orchestrator.blobs import BlobStore
from orchestrator.chores import Chore, doing
from orchestrator.conversations.store import ConversationStore
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.audit_log import AuditLog
from orchestrator.operations.checkpoint_sweep import (
    CheckpointDoor,
    CheckpointSweep,
    NeededCheckpoints,
    RunLogs,
)
from orchestrator.operations.kill_switches import KillSwitches
from orchestrator.operations.retention import Retention
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.servicer import OperationsServicer
from orchestrator.operations.session_sweep import SessionDoor, SessionSweep
from orchestrator.operations.statistics import Statistics
from orchestrator.operations.stopping import Cancel, Stopping
from orchestrator.operations.usage_sweep import Lineages, UsageSweep
from orchestrator.runs.late_usage import LateUsage
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.sessions.checkpoint_owners import CheckpointOwners
from orchestrator.runs.settlement import Settlement

_BOOK_EVERY_S = 1.0
_CHECKPOINTS_EVERY_S = 30.0
_SESSIONS_EVERY_S = 10.0
_SWITCHES_EVERY_S = 5.0
_USAGE_EVERY_S = 5.0
_RETAIN_EVERY_S = 600.0


class Sandbox(CheckpointDoor, SessionDoor, Protocol):
    """Where runs leave checkpoints and sessions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What else of the service they take part in."""

    blobs: BlobStore
    """Where whole outputs are."""
    logs: RunLogs
    """What happened in runs."""
    sandbox: Sandbox
    """Where runs leave things."""
    settlement: Settlement
    """Asks the gateway what calls took."""
    lineages: Lineages
    """What is above runs."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """What others need of them."""

    audit: AuditLog
    """Where deeds are written down."""
    switches: KillSwitches
    """What is stopped."""
    stopping: Stopping
    """What stops it."""
    database: Database
    """What all of it is in."""

    @classmethod
    def over(cls, database: Database, cancel: Cancel) -> Operations:
        """Put together what needs nothing but the database; `cancel` asks runs to stop."""
        audit = AuditLog(database)
        return cls(audit, KillSwitches(database, audit), Stopping(database, cancel), database)

    def servicer(self) -> OperationsServicer:
        """Return the service."""
        return OperationsServicer(
            Statistics(self.database),
            self.switches,
            self.audit,
            AuditCheck(self.database, self.audit),
            self.stopping.stop,
        )

    @contextlib.asynccontextmanager
    async def working(
        self, neighbours: Neighbours, *, runs_kept_days: float
    ) -> AsyncIterator[None]:
        """Keep the books while the block lasts, and delete what runs have left behind and nothing
        needs, and runs that ended so long ago; none where that is 0."""
        chores = self._chores(neighbours)
        if runs_kept_days:
            retention = Retention(
                self.database, neighbours.blobs, self.audit, kept_days=runs_kept_days
            )
            chores.append(
                Chore(name="retention", work=retention.sweep_all, every_s=_RETAIN_EVERY_S)
            )
        async with doing(*chores):
            yield

    def _chores(self, neighbours: Neighbours) -> list[Chore]:
        logs, sandbox = neighbours.logs, neighbours.sandbox
        runs, conversations = RunStore(self.database), ConversationStore(self.database)
        needed = NeededCheckpoints(runs, logs, conversations)
        checkpoints = CheckpointSweep(CheckpointOwners(self.database), needed, sandbox)
        usage = UsageSweep(
            LateUsage(self.database), neighbours.settlement, logs, neighbours.lineages
        )
        books, sessions = RunBooks(self.database, self.audit), SessionSweep(runs, sandbox)
        return [
            Chore(name="the audit log", work=books.book_all, every_s=_BOOK_EVERY_S),
            Chore(name="checkpoints", work=checkpoints.sweep_all, every_s=_CHECKPOINTS_EVERY_S),
            Chore(
                name="sessions",
                work=sessions.sweep,
                every_s=_SESSIONS_EVERY_S,
                is_begun_at_once=False,
            ),
            Chore(
                name="kill switches",
                work=self.stopping.enforce,
                every_s=_SWITCHES_EVERY_S,
                is_begun_at_once=False,
            ),
            Chore(
                name="late usage",
                work=usage.sweep_all,
                every_s=_USAGE_EVERY_S,
                is_begun_at_once=False,
            ),
        ]

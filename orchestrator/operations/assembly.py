"""The parts for those who run the service, put together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Protocol

from common.database import Database
from orchestrator.blobs import BlobStore
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
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.sessions.checkpoint_owners import CheckpointOwners

_BOOK_EVERY_S = 1.0
_RETAIN_EVERY_S = 600.0


class Sandbox(CheckpointDoor, SessionDoor, Protocol):
    """Where runs leave checkpoints and sessions."""


@dataclasses.dataclass(frozen=True)
class Operations:
    """What others need of them."""

    audit: AuditLog
    """Where deeds are written down."""
    switches: KillSwitches
    """What is stopped."""
    database: Database
    """What all of it is in."""

    @classmethod
    def over(cls, database: Database) -> Operations:
        """Put together what needs nothing but the database."""
        audit = AuditLog(database)
        return cls(audit, KillSwitches(database, audit), database)

    def servicer(self, cancel: Cancel) -> OperationsServicer:
        """Return the service; `cancel` asks runs to stop."""
        return OperationsServicer(
            Statistics(self.database),
            self.switches,
            self.audit,
            AuditCheck(self.database, self.audit),
            Stopping(self.database, cancel).stop,
        )

    @contextlib.asynccontextmanager
    async def working(
        self, blobs: BlobStore, logs: RunLogs, sandbox: Sandbox, *, runs_kept_days: float
    ) -> AsyncIterator[None]:
        """Keep the books while the block lasts, and delete what runs have left behind and nothing
        needs, and runs that ended so long ago; none where that is 0."""
        runs, conversations = RunStore(self.database), ConversationStore(self.database)
        needed = NeededCheckpoints(runs, logs, conversations)
        checkpoints = CheckpointSweep(CheckpointOwners(self.database), needed, sandbox)
        work = [
            RunBooks(self.database, self.audit).keep(_BOOK_EVERY_S),
            checkpoints.keep(),
            SessionSweep(runs, sandbox).keep(),
        ]
        if runs_kept_days:
            retention = Retention(self.database, blobs, self.audit, kept_days=runs_kept_days)
            work.append(retention.keep(_RETAIN_EVERY_S))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

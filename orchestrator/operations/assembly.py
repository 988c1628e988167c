"""The parts for those who run the service, put together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from common.database import Database
from orchestrator.blobs import BlobStore
from orchestrator.operations.audit_check import AuditCheck
from orchestrator.operations.audit_log import AuditLog
from orchestrator.operations.kill_switches import KillSwitches
from orchestrator.operations.retention import Retention
from orchestrator.operations.run_books import RunBooks
from orchestrator.operations.servicer import OperationsServicer
from orchestrator.operations.statistics import Statistics
from orchestrator.operations.stopping import Cancel, Stopping

_BOOK_EVERY_S = 1.0
_SWEEP_EVERY_S = 600.0


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
    async def working(self, blobs: BlobStore, *, runs_kept_days: float) -> AsyncIterator[None]:
        """Keep the books while the block lasts, and delete runs that ended so long ago; none where
        that is 0."""
        tasks = [asyncio.create_task(RunBooks(self.database, self.audit).keep(_BOOK_EVERY_S))]
        if runs_kept_days:
            retention = Retention(self.database, blobs, self.audit, kept_days=runs_kept_days)
            tasks.append(asyncio.create_task(retention.keep(_SWEEP_EVERY_S)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

"""The ledger put together: what is opened, in which order, and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from common.background import end_tasks
from common.database import Database, DatabaseThread
from llm_gateway.ledger.answer_store import FolderAnswerStore
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.ledger import Ledger, new_owner
from llm_gateway.ledger.lives import Lives
from llm_gateway.ledger.shared_clock import SharedClock
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.sweep import Sweep
from llm_gateway.ledger.tables import MIGRATIONS

_LIVES = "alive"
"""Beside the answers: gateways that share a database share that folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    """What a ledger is opened with."""

    database_url: str
    """SQLAlchemy URL with an async driver."""
    answers: Path
    """Folder of large answers."""
    answer_bytes_inline_max: int
    """Bytes above which an answer goes there."""
    retention_days: int
    """Days after which answers and spend are deleted."""
    lease_s: float
    """Seconds without a sign of life after which a process is dead."""


@dataclasses.dataclass(frozen=True)
class OpenLedger:
    """What stands open."""

    ledger: Ledger
    """For calls."""
    database: Database
    """The same tables, for reports."""
    commits: GroupCommit
    """The way to its transactions, for what belongs into them."""
    clock: SharedClock
    """The time that those who share it agree on."""


@contextlib.asynccontextmanager
async def open_ledger(settings: LedgerSettings) -> AsyncIterator[OpenLedger]:
    """Open a ledger, bring its tables up to date and tend it while the block lasts.

    Raises ConfigError.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(settings.database_url, MIGRATIONS)
        stack.push_async_callback(database.close)
        clock = SharedClock(database)
        await stack.enter_async_context(clock.running(settings.lease_s / 3))
        thread = DatabaseThread.open(settings.database_url)
        stack.push_async_callback(thread.close)
        commits = GroupCommit(SqlCallStore(thread))
        answers = FolderAnswerStore(settings.answers)
        books = Books(
            commits,
            answers,
            owner=new_owner(),
            answer_bytes_inline_max=settings.answer_bytes_inline_max,
            now=clock.now,
        )
        lives = Lives(settings.answers / _LIVES)
        stack.enter_context(lives.living(books.owner))
        ledger = Ledger(books, lease_s=settings.lease_s, lives=lives)
        await stack.enter_async_context(ledger.living())
        sweep = Sweep(
            ledger,
            commits,
            answers,
            owner=books.owner,
            retention_days=settings.retention_days,
            lives=lives,
            interval_s=settings.lease_s,
            now=clock.now,
        )
        sweeping = asyncio.create_task(sweep.run())
        stack.push_async_callback(end_tasks, sweeping)
        yield OpenLedger(ledger, database, commits, clock)

"""An open database, and its transactions. It holds no queries; each store has its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common import sqlite_driver
from common.config import ConfigError
from common.database import migrations
from common.database.absence import DatabaseAwayError, telling_absence
from common.database.connections import prepare_connections
from common.database.thread import DatabaseThread

_TALKATIVE = ("aiosqlite", "psycopg")
"""Libraries that log what is stored, at DEBUG."""
_RETRY_S = 0.1
Result = TypeVar("Result")


class Database:
    """An open database. Close it with its owner."""

    def __init__(self, engine: AsyncEngine, patience_s: float = 0.0) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._thread: DatabaseThread | None = None
        # SQLite has one writer: waiting here costs nothing, waiting in its busy handler sleeps.
        self._writer = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str, scripts: Path, *, patience_s: float = 0.0) -> Self:
        """Open the database at an SQLAlchemy URL and bring its tables up to date with the Alembic
        scripts in a folder. A new SQLite file can be read by its owner alone. Where the database
        takes no connections, as while it restarts, this and each reader and writer waits
        `patience_s`.

        Raises ConfigError for a URL that is none, and DatabaseAwayError.
        """
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            parsed = make_url(url)
            # A file does not go away as a server does: asking each time took a third of a read.
            is_server = parsed.get_backend_name() != "sqlite"
            options: dict[str, Any] = {"pool_pre_ping": is_server}
            if not is_server:
                options["async_creator"] = functools.partial(sqlite_driver.connect, parsed)
            engine = create_async_engine(parsed, hide_parameters=True, **options)
        except (ArgumentError, ImportError) as error:
            raise ConfigError(f"database_url: {error}") from error
        prepare_connections(engine.sync_engine)
        database = cls(engine, patience_s)
        with await asyncio.to_thread(migrations.alone, parsed):
            async with database.writing() as connection:
                await connection.run_sync(migrations.migrate, scripts)
        return database

    @property
    def is_shared(self) -> bool:
        """True where several processes may use it: for PostgreSQL, not for SQLite."""
        return self._writer is None

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection to read with. Raises DatabaseAwayError, also in the block."""
        async with self._connected() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed where the block ends well, else rolled back. Raises
        DatabaseAwayError, also in the block."""
        async with (
            self._writer or contextlib.nullcontext(),
            self._connected() as connection,
            connection.begin(),
        ):
            yield connection

    async def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Return what `work` returns, in a transaction to write in, as in `writing`, and at a third
        of its cost: it is called in a thread, one at a time. It is never repeated here.

        Raises DatabaseAwayError at once, and ConfigError for a database in memory.
        """
        if self._thread is None:
            self._thread = DatabaseThread.open(self._engine.url)
        async with self._writer or contextlib.nullcontext():
            with telling_absence(self._engine.dialect.name):
                return await self._thread.transact(work)

    @contextlib.asynccontextmanager
    async def notified(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """Listen to channels of PostgreSQL's NOTIFY and yield what comes: channel and payload.

        Nothing that is sent once the block has begun is missed. A connection that breaks ends what
        is yielded with a DatabaseAwayError.
        """
        async with self._connected() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            for channel in channels:
                await connection.execute(text(f"LISTEN {channel}"))
            raw = await connection.get_raw_connection()
            try:
                yield _notifications(raw.driver_connection)
            finally:
                # Else the pool would hand it on, still listening.
                await connection.invalidate()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        with telling_absence(self._engine.dialect.name):
            async with contextlib.AsyncExitStack() as stack:
                yield await self._connect(stack)

    async def _connect(self, stack: contextlib.AsyncExitStack) -> AsyncConnection:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return await stack.enter_async_context(self._engine.connect())
            except OperationalError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Close every connection."""
        if self._thread is not None:
            await self._thread.close()
        await self._engine.dispose()


async def _notifications(driver: Any) -> AsyncIterator[tuple[str, str]]:
    try:
        async for notify in driver.notifies():
            yield notify.channel, notify.payload
    except psycopg.Error as error:
        raise DatabaseAwayError from error

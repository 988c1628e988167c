"""The database: an engine, its migrations, and transactions to read and to write in.

It holds no queries; each store has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common.config import ConfigError

_BUSY_TIMEOUT_MS = 10_000
_MIGRATION_LOCK = 0x66617468_6F6D
"""Key of PostgreSQL's advisory lock: processes that start together migrate one after the other."""
_TALKATIVE = ("aiosqlite", "psycopg")
"""Libraries that log what is stored, at DEBUG."""
Result = TypeVar("Result")


class Database:
    """An open database. Close it with its owner."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer: waiting here costs nothing, waiting in its busy handler sleeps.
        self._writer = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str, migrations: Path) -> Self:
        """Open the database at an SQLAlchemy URL and bring its tables up to date with the Alembic
        scripts in a folder. A new SQLite file can be read by its owner alone.

        Raises ConfigError for a URL that is none.
        """
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            parsed = make_url(url)
            engine = create_async_engine(parsed, hide_parameters=True)
        except (ArgumentError, ImportError) as error:
            raise ConfigError(f"database_url: {error}") from error
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _set_pragmas)
        with await asyncio.to_thread(_alone, parsed):
            async with engine.begin() as connection:
                await connection.run_sync(_migrate, migrations)
        return cls(engine)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection to read with."""
        async with self._engine.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed where the block ends well, else rolled back."""
        async with self._writer or contextlib.nullcontext():
            async with self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


class DatabaseThread:
    """One connection in a thread of its own: for many small transactions, which cost a third of
    what they cost over an asynchronous driver, since not each statement changes threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")

    @classmethod
    def open(cls, url: str) -> Self:
        """Make one for the URL of a Database, whose tables are up to date.

        Raises ConfigError for a database in memory, which no two connections share.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in {None, "", ":memory:"}:
                raise ConfigError("database_url: must name a file")
            parsed = parsed.set(drivername="sqlite")
        engine = create_engine(parsed, pool_size=1, max_overflow=0, hide_parameters=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_pragmas)
        return cls(engine)

    async def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Return what `work` returns, in a transaction: committed unless it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)

    async def close(self) -> None:
        """Close the connection, after what is under way."""
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()

    def _do(self, work: Callable[[Connection], Result]) -> Result:
        with self._engine.begin() as connection:
            return work(connection)


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL loses no consistency in WAL mode; a power cut may lose the newest transactions.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _alone(url: URL) -> contextlib.AbstractContextManager[None]:
    """Make an SQLite file's folder and file, and keep other processes from migrating it."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return contextlib.nullcontext()
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the file itself is locked: closing it would drop the locks that SQLite has on it.
    lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.touch(mode=0o600)
    return _closing(lock)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _migrate(connection: Connection, migrations: Path) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

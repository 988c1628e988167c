"""The database: an engine, its migrations, and transactions to read and to write in.

It holds no queries; each store has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import psycopg
from alembic import command
from alembic.config import Config
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common import sqlite_driver
from common.config import ConfigError
from common.errors import ServiceError

_BUSY_TIMEOUT_MS = 10_000
_MIGRATION_LOCK = 0x66617468_6F6D
"""Key of PostgreSQL's advisory lock: processes that start together migrate one after the other."""
_TALKATIVE = ("aiosqlite", "psycopg")
"""Libraries that log what is stored, at DEBUG."""
_RETRY_S = 0.1
_IDLE_MS_MAX = 5_000
_SILENCE_S_MAX = 10.0
"""Longest wait for a transaction in a thread of its own; SQLite's own waits end by then."""
_CONNECT_S_MAX = 3
_SQLITE_AWAY = ("locked", "full", "disk I/O", "unable to open")
"""Words of SQLite's errors that are the machine's and not the statement's."""
_SQLITE_FULL = "disk is full"
_POSTGRESQL_FULL = "53100"
"""Its code of disk_full."""
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class DatabaseAwayError(ServiceError):
    """The database does not answer, or has broken off: whether a transaction that was under way
    is stored is not known."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DATABASE_AWAY

    def __init__(self) -> None:
        super().__init__("the database does not answer; try again", retry_after_s=1.0)


class DatabaseFullError(DatabaseAwayError):
    """The disk of the database is full: what was to be stored is not. It comes back as one that
    was away does, once there is room."""

    reason = ErrorReason.ERROR_REASON_DATABASE_FULL

    def __init__(self) -> None:
        ServiceError.__init__(
            self,
            "the disk of the database is full; work goes on once its operator has made room",
            retry_after_s=10.0,
        )


class Database:
    """An open database. Close it with its owner."""

    def __init__(self, engine: AsyncEngine, patience_s: float = 0.0) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._thread: DatabaseThread | None = None
        # SQLite has one writer: waiting here costs nothing, waiting in its busy handler sleeps.
        self._writer = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str, migrations: Path, *, patience_s: float = 0.0) -> Self:
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
        is_sqlite = engine.dialect.name == "sqlite"
        event.listen(engine.sync_engine, "connect", _set_pragmas if is_sqlite else bound_idleness)
        database = cls(engine, patience_s)
        with await asyncio.to_thread(_alone, parsed):
            async with database.writing() as connection:
                await connection.run_sync(_migrate, migrations)
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


class DatabaseThread:
    """One connection in a thread of its own: for many small transactions, which cost a third of
    what they cost over an asynchronous driver, since not each statement changes threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._turn = asyncio.Lock()
        # Kept from transaction to transaction: the pool takes as long as a small one itself.
        self._connection: Connection | None = None
        self._driver: Any = None
        event.listen(engine, "connect", self._note_connected)

    @classmethod
    def open(cls, url: str | URL) -> Self:
        """Make one for the URL of a Database, whose tables are up to date.

        Raises ConfigError for a database in memory, which no two connections share.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in {None, "", ":memory:"}:
                raise ConfigError("database_url: must name a file")
            parsed = parsed.set(drivername="sqlite")
        is_sqlite = parsed.get_backend_name() == "sqlite"
        engine = create_engine(
            parsed,
            pool_size=1,
            max_overflow=0,
            hide_parameters=True,
            connect_args={} if is_sqlite else {"connect_timeout": _CONNECT_S_MAX},
        )
        event.listen(engine, "connect", _set_pragmas if is_sqlite else bound_idleness)
        return cls(engine)

    async def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Return what `work` returns, in a transaction: committed unless it raises.

        A server that says nothing for ten seconds counts as one that has broken off.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            silence = loop.call_later(_SILENCE_S_MAX, self._break_off)
            try:
                return await loop.run_in_executor(self._thread, self._do, work)
            finally:
                silence.cancel()

    async def close(self) -> None:
        """Close the connection, after what is under way."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    def _note_connected(self, driver: Any, _record: object) -> None:
        self._driver = driver

    def _break_off(self) -> None:
        """End the wait for a server that hangs: the thread's connection is cut under it."""
        _log.error("the database does not answer", extra={"for_s": _SILENCE_S_MAX})
        if self._engine.dialect.name != "postgresql" or self._driver is None:
            return  # a file has nothing that could be cut; another writer is waited for no longer
        with contextlib.suppress(OSError, psycopg.Error):  # it may have ended by itself
            with socket.socket(fileno=os.dup(self._driver.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def _do(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connection or self._engine.connect()
        self._connection = connection
        try:
            return self._transact(connection, work)
        except BaseException:
            if connection.invalidated:
                self._connection = None
                connection.close()
            raise

    def _transact(self, connection: Connection, work: Callable[[Connection], Result]) -> Result:
        driver = self._engine.dialect.loaded_dbapi
        with connection.begin():
            try:
                return work(connection)
            except driver.Error as error:  # of a statement that was given to the driver as it is
                dialect = self._engine.dialect
                is_gone = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
                if is_gone:
                    connection.invalidate(error)
                raise DBAPIError.instance(
                    None, None, error, driver.Error, connection_invalidated=is_gone
                ) from error


@contextlib.contextmanager
def telling_absence(dialect: str) -> Iterator[None]:
    """Turn errors in the block that are the database's, and not the statement's, into
    DatabaseAwayError."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if _is_full(error, dialect):
            raise DatabaseFullError from error
        if dialect == "sqlite" and not any(word in str(error.orig) for word in _SQLITE_AWAY):
            raise
        raise DatabaseAwayError from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseAwayError from error
    except PoolTimeoutError as error:
        raise DatabaseAwayError from error


def _is_full(error: DBAPIError, dialect: str) -> bool:
    if dialect == "sqlite":
        return _SQLITE_FULL in str(error.orig)
    return getattr(error.orig, "sqlstate", None) == _POSTGRESQL_FULL


async def _notifications(driver: Any) -> AsyncIterator[tuple[str, str]]:
    try:
        async for notify in driver.notifies():
            yield notify.channel, notify.payload
    except psycopg.Error as error:
        raise DatabaseAwayError from error


def bound_idleness(connection: Any, _record: object) -> None:
    """Have PostgreSQL end a transaction whose process stands still: it would keep its locks, and
    others from what it was doing."""
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS_MAX}")
    cursor.close()
    connection.commit()  # else the pool takes it back with the first transaction


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

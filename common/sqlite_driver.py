"""The driver of SQLite, so that a statement takes one trip to the connection's thread.

aiosqlite takes one for making a cursor, one to execute, one to fetch and one to close: changing
threads four times took longer than most statements. SQLAlchemy sees the same interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL, set_exception, set_result
from sqlalchemy.engine import URL

Orders = queue.SimpleQueue[tuple[asyncio.Future[Any] | None, Callable[[], object]]]
_ROWS_AT_ONCE = 256
"""Rows that come along with the execution of a statement."""


class QuickConnection(aiosqlite.Connection):
    """A connection; awaiting it opens it."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=_ROWS_AT_ONCE)
        # A process that ends is not to wait for it.
        self._thread = threading.Thread(target=_carry_out, args=(self._tx,), daemon=True)
        self._stopped: asyncio.Future[Any] | None = None
        self._is_stopping = False

    def __del__(self) -> None:
        """Close what is nobody's: SQLAlchemy drops a connection whose caller is cancelled while it
        is made ready. There may be no loop any more that could be told of it."""
        made, self._connection = self._connection, None
        if made is not None and not self._is_stopping:
            self._tx.put_nowait((None, functools.partial(_end, made)))

    def stop(self) -> asyncio.Future[Any] | None:
        """End the thread and the connection after what is under way. SQLAlchemy may ask more than
        once where callers are cancelled; of aiosqlite, whoever asks again would wait for ever."""
        if not self._is_stopping:
            self._is_stopping = True
            self._stopped = super().stop()
        # Who is cancelled while waiting is not to cancel the others' wait.
        return self._stopped and asyncio.shield(self._stopped)

    async def close(self) -> None:
        """Close it, and wait until it is."""
        stopped = self.stop()
        if stopped is not None:
            await stopped

    def cursor(self) -> QuickCursor:  # type: ignore[override]
        """Return a cursor, which takes no trip."""
        return QuickCursor(self)

    async def rollback(self) -> None:
        """Roll back; what has only been read needs no trip. SQLAlchemy keeps no connection whose
        statement was cut off, so that the thread is at nothing else."""
        if self._conn.in_transaction:
            await super().rollback()

    async def trip(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Call `work` in the connection's thread."""
        await self._execute(work, self._conn)  # type: ignore[no-untyped-call]


class QuickCursor:
    """A cursor that is executed, read as far as most statements go, and closed in one trip."""

    def __init__(self, connection: QuickConnection) -> None:
        self._connection = connection
        self._open: sqlite3.Cursor | None = None
        self._rows: list[Any] = []
        self.arraysize = 1
        self.description: Any = None
        """Columns, as in the DB-API."""
        self.rowcount = -1
        """Rows that were changed."""
        self.lastrowid: int | None = None
        """The newest row."""

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Any = ()) -> None:
        """Execute a statement."""
        await self._connection.trip(lambda each: self._take(each.execute(statement, parameters)))

    async def executemany(self, statement: str, parameters: Sequence[Any]) -> None:
        """Execute a statement for each set of parameters."""
        await self._connection.trip(
            lambda each: self._take(each.executemany(statement, parameters))
        )

    async def fetchone(self) -> Any:
        """Return the next row; None after the last."""
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return up to so many rows more."""
        size = size or self.arraysize
        if len(self._rows) < size and self._open is not None:
            count = max(size, _ROWS_AT_ONCE)
            await self._connection.trip(lambda _: self._fetch(count))
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    async def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        if self._open is not None:
            await self._connection.trip(lambda _: self._fetch(None))
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Let go of what was not read."""
        if self._open is not None:
            await self._connection.trip(lambda _: self._close())
        self._rows = []

    def _take(self, cursor: sqlite3.Cursor) -> None:
        self.description, self.lastrowid = cursor.description, cursor.lastrowid
        self._open = cursor
        self._fetch(_ROWS_AT_ONCE if cursor.description else 0)

    def _fetch(self, count: int | None) -> None:
        """Read `count` rows more, or all, and close the cursor after the last."""
        assert self._open is not None
        rows = self._open.fetchall() if count is None else self._open.fetchmany(count)
        self._rows += rows
        self.rowcount = self._open.rowcount  # of RETURNING it grows with the rows that are read
        if count is None or len(rows) < count or not count:
            self._close()

    def _close(self) -> None:
        assert self._open is not None
        self._open.close()
        self._open = None


def _carry_out(orders: Orders) -> None:
    """Do what a connection is asked for, to its end. aiosqlite's own thread dies, with its file
    open, of a loop that was closed after a caller had gone."""
    while True:
        future, work = orders.get()
        try:
            result = work()
        except BaseException as error:  # whatever it is, it is the caller's
            _tell(future, set_exception, error)
        else:
            _tell(future, set_result, result)
            if result is _STOP_RUNNING_SENTINEL:
                return


def _tell(future: asyncio.Future[Any] | None, how: Callable[..., None], what: object) -> None:
    if future is not None:
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
            future.get_loop().call_soon_threadsafe(how, future, what)


def _end(made: sqlite3.Connection) -> object:
    made.close()
    return _STOP_RUNNING_SENTINEL


def connect(url: URL) -> QuickConnection:
    """Return a connection to the file of an SQLAlchemy URL, which opens once it is awaited."""
    arguments, options = url.get_dialect()().create_connect_args(url)
    return QuickConnection(functools.partial(sqlite3.connect, *arguments, **options))

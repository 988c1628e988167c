"""A database's thread: one connection for many small transactions.

It knows neither patience nor the writers of other connections; `database.py` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from common.config import ConfigError
from common.database.connections import prepare_connections

_SILENCE_S_MAX = 10.0
"""Longest wait for a transaction in a thread of its own; SQLite's own waits end by then."""
_CONNECT_S_MAX = 3
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


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
        prepare_connections(engine)
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

"""This process among those that drive runs: its lease, and what becomes of the runs of others
whose lease has ended.

A lease is a row; a process without its row owns nothing. The database's clock alone counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, delete, func, literal, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from common.config import ConfigError
from common.database import Database, DatabaseAwayError
from orchestrator import tables
from orchestrator.runs.log.record import TERMINAL_STATES
from orchestrator.runs.log.store import QUEUE_CHANNEL

_RANDOM_BYTES = 4
_HOST_CHARACTERS = 64
_HANDOVER_S = 10.0
"""How long a process waits for a former one to end."""
_LOOK_S = 0.05


class Executor:
    """This process; open it once, renew its lease, and close it to let its runs go on elsewhere."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._database = database
        self._lease_us = int(lease_s * 1e6)
        host = socket.gethostname()[:_HOST_CHARACTERS]
        self.executor_id = f"{host}-{os.getpid()}-{secrets.token_hex(_RANDOM_BYTES)}"
        """Names this process, and no other ever."""

    async def open(self) -> None:
        """Take a lease. A database that is not shared has no other process, so whatever a former
        one left is free at once."""
        async with self._database.writing() as connection:
            if not self._database.is_shared:
                await connection.execute(delete(tables.executors))
            await self._enter(connection)
        await self.reap()

    async def renew(self) -> bool:
        """Extend the lease; return whether it had not ended. Where it had, this process has lost
        its runs, and has a lease again."""
        executors = tables.executors
        change = (
            update(executors)
            .where(executors.c.executor_id == self.executor_id)
            .values(lease_end_us=self._now_us() + self._lease_us)
        )
        async with self._database.writing() as connection:
            if (await connection.execute(change)).rowcount:
                return True
            await self._enter(connection)
        return False

    async def reap(self) -> list[str]:
        """Free the runs of executors whose lease has ended; return their ids."""
        runs, executors = tables.runs, tables.executors
        left = (
            select(runs.c.run_id)
            .where(
                runs.c.state.not_in(sorted(TERMINAL_STATES)),
                runs.c.owner.is_not(None),
                runs.c.owner.not_in(select(executors.c.executor_id)),
            )
            .order_by(runs.c.run_id)  # as everybody locks several
            .with_for_update()
        )
        async with self._database.writing() as connection:
            ended = executors.c.lease_end_us <= self._now_us()
            await connection.execute(delete(executors).where(ended))
            free = list((await connection.execute(left)).scalars())
            if free:
                change = update(runs).where(runs.c.run_id.in_(free))
                await connection.execute(change.values(owner=None))
            return free

    async def alive(self) -> frozenset[str]:
        """Return the executors that have a lease, or had one a moment ago."""
        async with self._database.reading() as connection:
            query = select(tables.executors.c.executor_id)
            return frozenset((await connection.execute(query)).scalars())

    async def close(self) -> None:
        """End the lease: every run that is still this process's is free. Where the database is
        away, the lease ends by itself."""
        executors = tables.executors
        own = delete(executors).where(executors.c.executor_id == self.executor_id)
        with contextlib.suppress(DatabaseAwayError):
            async with self._database.writing() as connection:
                await connection.execute(own)
            await self.reap()
            if self._database.is_shared:
                async with self._database.writing() as connection:
                    await connection.execute(select(func.pg_notify(QUEUE_CHANNEL, "")))

    async def _enter(self, connection: AsyncConnection) -> None:
        row = {"executor_id": self.executor_id, "lease_end_us": self._now_us() + self._lease_us}
        await connection.execute(tables.executors.insert().values(**row))

    def _now_us(self) -> ColumnElement[Any]:
        """Return the time as the database has it: processes' clocks may differ by seconds."""
        if self._database.is_shared:
            seconds = func.extract("epoch", func.clock_timestamp())
            return sql_cast(seconds * 1_000_000, BigInteger)
        return literal(time.time_ns() // 1000)


@contextlib.asynccontextmanager
async def alone(database_url: str) -> AsyncIterator[None]:
    """Keep other orchestrators from an SQLite database: no lease would tell them apart.

    Raises ConfigError where one has it for longer than a restart takes.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        yield
        return
    path = Path(f"{url.database}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:  # noqa: ASYNC230 - an empty file, before anything is served
        deadline_s = time.monotonic() + _HANDOVER_S
        while not _is_locked(lock.fileno()):
            if time.monotonic() > deadline_s:
                raise ConfigError(f"database_url: another orchestrator uses {url.database}")
            await asyncio.sleep(_LOOK_S)
        yield


def _is_locked(descriptor: int) -> bool:
    """Take the lock, which the kernel frees with the process, and return whether it was free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

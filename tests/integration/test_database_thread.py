"""The thread of small transactions, where another process uses the same rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from common import database
from common.database import DatabaseThread
from tests.support.postgres import PostgresServer

TOUCH = text("UPDATE things SET number = number + 1")


@pytest.fixture
async def threads(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[DatabaseThread, DatabaseThread]]:
    """Two processes' threads on one database that has a row."""
    monkeypatch.setattr(database, "_IDLE_MS_MAX", 300)
    url = postgres.new_database()
    first, second = DatabaseThread.open(url), DatabaseThread.open(url)

    def make(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE things (number INTEGER)"))
        connection.execute(text("INSERT INTO things VALUES (0)"))

    await first.transact(make)
    yield first, second
    await first.close()
    await second.close()


async def test_a_process_that_stands_still_in_a_transaction_stops_nobody_else(
    threads: tuple[DatabaseThread, DatabaseThread],
) -> None:
    """One that was paused would keep its locks, and with them every call of a tenant elsewhere."""
    first, second = threads
    has_locked, go_on = threading.Event(), threading.Event()

    def stand_still(connection: Connection) -> None:
        connection.execute(TOUCH)
        has_locked.set()
        go_on.wait(30)
        connection.execute(TOUCH)

    standing = asyncio.ensure_future(first.transact(stand_still))
    await asyncio.to_thread(has_locked.wait, 30)
    try:
        await asyncio.wait_for(second.transact(lambda each: each.execute(TOUCH)), 20)
    finally:
        go_on.set()
    with pytest.raises(DBAPIError):
        await standing

    found = await first.transact(
        lambda each: each.execute(text("SELECT number FROM things")).scalar()
    )
    assert found == 1

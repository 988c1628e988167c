"""The thread of small transactions, where another process uses the same rows."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from common.database import DatabaseThread, connections, thread
from tests.support.postgres import PostgresServer

TOUCH = text("UPDATE things SET number = number + 1")


@pytest.fixture
async def threads(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[DatabaseThread, DatabaseThread]]:
    """Two processes' threads on one database that has a row."""
    monkeypatch.setattr(connections, "_IDLE_MS_MAX", 2_000)
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


async def test_a_server_that_hangs_is_told_of_and_left_for_another_connection(
    threads: tuple[DatabaseThread, DatabaseThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes nothing and answers nothing: without a bound every call would wait with it."""
    first, _ = threads
    process = await first.transact(
        lambda each: each.execute(text("SELECT pg_backend_pid()")).scalar_one()
    )
    os.kill(process, signal.SIGSTOP)
    try:
        monkeypatch.setattr(thread, "_SILENCE_S_MAX", 0.3)
        with pytest.raises(DBAPIError) as caught:
            await asyncio.wait_for(first.transact(lambda each: each.execute(TOUCH)), 20)
        monkeypatch.setattr(thread, "_SILENCE_S_MAX", 20.0)
        after = await asyncio.wait_for(
            first.transact(lambda each: each.execute(text("SELECT 1")).scalar()), 20
        )
    finally:
        os.kill(process, signal.SIGCONT)

    assert caught.value.connection_invalidated
    assert after == 1


async def test_a_transaction_that_takes_its_time_is_not_taken_for_a_hanging_server(
    threads: tuple[DatabaseThread, DatabaseThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "_SILENCE_S_MAX", 20.0)
    first, _ = threads

    await first.transact(lambda each: each.execute(text("SELECT pg_sleep(0.2)")))

    assert await first.transact(lambda each: each.execute(text("SELECT 1")).scalar()) == 1

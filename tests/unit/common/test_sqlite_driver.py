"""The driver of SQLite: what SQLAlchemy relies on, beyond what one trip brings."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from common import sqlite_driver

things = Table("things", MetaData(), Column("id", Integer, primary_key=True))
MANY = 1_000
"""More rows than come with one trip, and no multiple of that."""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/things.sqlite")
    made = create_async_engine(url, async_creator=functools.partial(sqlite_driver.connect, url))
    async with made.begin() as connection:
        await connection.run_sync(things.metadata.create_all)
        await connection.execute(things.insert(), [{"id": n} for n in range(MANY)])
    yield made
    await made.dispose()


async def test_rows_beyond_the_first_trip_are_read(engine: AsyncEngine) -> None:
    query = select(things.c.id).order_by(things.c.id)
    async with engine.connect() as connection:
        at_once = list((await connection.execute(query)).scalars())
        streamed = await connection.stream(query.execution_options(yield_per=7))
        one_by_one = [number async for (number,) in streamed]

    assert at_once == one_by_one == list(range(MANY))


async def test_a_stream_that_is_left_early_leaves_its_connection_usable(
    engine: AsyncEngine,
) -> None:
    """A cursor that stays open would keep the database's table from being changed."""
    async with engine.connect() as connection:
        rows = await connection.stream(select(things.c.id).execution_options(yield_per=7))
        await rows.fetchone()
        await rows.close()
        await connection.execute(text("DROP TABLE things"))


async def test_rows_that_were_changed_are_counted(engine: AsyncEngine) -> None:
    """Whether a run is still this process's is told by that count alone."""
    async with engine.begin() as connection:
        moved = await connection.execute(update(things).values(id=things.c.id + MANY))
        none = await connection.execute(update(things).where(things.c.id < 0).values(id=-1))
        told = await connection.execute(things.insert().returning(things.c.id), {"id": 5})

    assert (moved.rowcount, none.rowcount, told.scalar()) == (MANY, 0, 5)


async def test_what_a_statement_raises_is_told_in_sqlalchemys_words(engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(things.insert(), {"id": 1})


async def test_a_write_that_was_cut_off_is_undone(engine: AsyncEngine) -> None:
    """The thread is still at it when its caller goes. Were its connection used again, it would have
    an open transaction, and nobody could write any more."""
    is_begun, may_end = threading.Event(), threading.Event()

    def dwell() -> int:
        is_begun.set()
        may_end.wait(30)
        return 1

    @event.listens_for(engine.sync_engine, "checkout")
    def offer(connection: object, _record: object, _proxy: object) -> None:
        connection.create_function("dwell", 0, dwell)  # type: ignore[attr-defined]

    async def write() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM things WHERE dwell()"))

    writing = asyncio.create_task(write())
    await asyncio.to_thread(is_begun.wait, 30)
    writing.cancel()
    asyncio.get_running_loop().call_later(0.05, may_end.set)
    await asyncio.wait({writing})

    async with asyncio.timeout(10), engine.begin() as connection:
        await connection.execute(things.insert(), {"id": MANY})
        count = (await connection.execute(select(func.count()).select_from(things))).scalar()
    assert count == MANY + 1


async def test_a_connection_may_be_closed_again_and_again(tmp_path: Path) -> None:
    """SQLAlchemy does so where a caller is cancelled twice; nobody is to wait for ever."""
    made = await sqlite_driver.connect(make_url(f"sqlite+aiosqlite:///{tmp_path}/a.sqlite"))
    given_up = asyncio.create_task(made.close())
    await asyncio.sleep(0)
    given_up.cancel()
    made.stop()

    async with asyncio.timeout(10):
        await made.close()
        await made.close()

    assert given_up.cancelled()
    await asyncio.to_thread(made._thread.join, 10)
    assert not made._thread.is_alive()


def test_a_connection_whose_loop_is_closed_ends_its_thread_all_the_same(tmp_path: Path) -> None:
    """A caller that is cancelled when the process ends may leave it at a statement; its file would
    stay open."""
    is_begun, may_end = threading.Event(), threading.Event()

    def dwell(_: object) -> None:
        is_begun.set()
        may_end.wait(30)

    async def leave_it() -> sqlite_driver.QuickConnection:
        made = sqlite_driver.connect(make_url(f"sqlite+aiosqlite:///{tmp_path}/a.sqlite"))
        await made
        waiting = asyncio.create_task(made.trip(dwell))
        await asyncio.to_thread(is_begun.wait, 30)
        waiting.cancel()
        made.stop()
        return made

    made = asyncio.run(leave_it())
    may_end.set()
    made._thread.join(30)

    assert not made._thread.is_alive()
    assert made._connection is None


async def test_a_connection_that_is_nobodys_ends_its_thread(tmp_path: Path) -> None:
    """One whose caller is cancelled while it is made ready is never handed out."""
    made = await sqlite_driver.connect(make_url(f"sqlite+aiosqlite:///{tmp_path}/a.sqlite"))
    thread = made._thread

    del made

    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()

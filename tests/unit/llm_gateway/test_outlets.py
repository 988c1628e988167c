"""The way of pieces from an exchange to a reader."""

from __future__ import annotations

import asyncio

from llm_gateway.answers import Delta
from llm_gateway.outlets import Outlet, Started


async def test_pieces_arrive_in_order_after_the_start() -> None:
    outlet = Outlet()
    pieces = outlet.pieces()
    await outlet.put("small", Delta(text="a"))
    first = [await anext(pieces), await anext(pieces)]
    await outlet.put("small", Delta(text="b"))
    outlet.end()

    later = [piece async for piece in pieces]

    assert first == [Started("small"), Delta(text="a")]
    assert later == [Delta(text="b")]


async def test_what_has_come_meanwhile_is_one_piece_of_its_kind() -> None:
    """A message to the reader costs more than a piece from the provider."""
    outlet = Outlet()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), Delta(text="b")):
        await outlet.put("small", delta)
    outlet.end()

    pieces = [piece async for piece in outlet.pieces()]

    assert pieces == [Started("small"), Delta(reasoning="hm"), Delta(text="ab")]


async def test_a_slow_reader_makes_the_writer_wait() -> None:
    outlet, written = Outlet(), 0

    async def write() -> None:
        nonlocal written
        for _ in range(200):
            await outlet.put("small", Delta(text="x"))
            written += 1
        outlet.end()

    writing = asyncio.create_task(write())
    for _ in range(500):
        await asyncio.sleep(0)
    written_before_reading = written
    read = [piece async for piece in outlet.pieces()]
    await writing

    assert written_before_reading == 64
    assert "".join(piece.text for piece in read if isinstance(piece, Delta)) == "x" * 200


async def test_a_writer_is_not_held_up_by_a_reader_who_has_gone() -> None:
    outlet = Outlet()

    async def write() -> None:
        for _ in range(200):
            await outlet.put("small", Delta(text="x"))

    writing = asyncio.create_task(write())
    for _ in range(500):
        await asyncio.sleep(0)
    outlet.close()

    await asyncio.wait_for(writing, 5)

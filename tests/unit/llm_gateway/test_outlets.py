"""The way of pieces from an exchange to a reader, and what may wait for all readers."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from common.errors import ServiceError
from llm_gateway.answers import Answer, Delta, Spend
from llm_gateway.backlog import Backlog
from llm_gateway.errors import StreamReaderSlowError
from llm_gateway.outlets import Outlet, Started
from tests.support.gateway import completion

TEXT = "x" * 800
WAITING = len(TEXT) + 200
"""What a piece of that text counts."""


def outlet(backlog: Backlog | None = None, tenant: str = "acme") -> Outlet:
    return Outlet(backlog or Backlog(), tenant)


def answer(text: str = "", reasoning: str = "") -> Answer:
    return Answer(
        completion=completion(text, reasoning=reasoning),
        model="small",
        spend=Spend(),
        attempts=1,
        elapsed_s=0.0,
    )


def filled(backlog: Backlog, tenant: str = "acme", pieces: int = 1) -> Outlet:
    """Return an outlet of whose pieces none was read."""
    made = outlet(backlog, tenant)
    for _ in range(pieces):
        made.put("small", Delta(text=TEXT))
    return made


async def is_cut_off(of: Outlet) -> bool:
    of.fail(EOFError())
    try:
        async for _ in of.pieces():
            pass
    except (EOFError, StreamReaderSlowError) as error:
        return isinstance(error, StreamReaderSlowError)
    raise AssertionError("an outlet tells how it failed")


async def test_pieces_arrive_in_order_after_the_start() -> None:
    way = outlet()
    pieces = way.pieces()
    way.put("small", Delta(text="a"))
    first = [await anext(pieces), await anext(pieces)]
    way.put("small", Delta(text="b"))
    way.end(answer("ab"))

    later = [piece async for piece in pieces]

    assert first == [Started("small"), Delta(text="a")]
    assert later == [Delta(text="b"), answer("ab")]


async def test_what_has_come_meanwhile_is_one_piece_of_its_kind() -> None:
    """A message to the reader costs more than a piece from the provider."""
    way = outlet()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), Delta(text="b")):
        way.put("small", delta)
    way.end(answer("ab", "hm"))

    pieces = [piece async for piece in way.pieces()]

    assert pieces[:-1] == [Started("small"), Delta(reasoning="hm"), Delta(text="ab")]


async def test_a_reader_takes_no_more_than_a_message_at_a_time() -> None:
    """The rest can be let go of as long as it stands still, and is in order where it does not."""
    way = outlet()
    for number in range(4):
        way.put("small", Delta(text=str(number) * (40 << 10)))
    way.end(answer("0123"))
    pieces = way.pieces()
    assert await anext(pieces) == Started("small")

    first = await anext(pieces)

    assert first == Delta(text="0" * (40 << 10) + "1" * (40 << 10))
    assert way.waiting_bytes >= 2 * (40 << 10)
    assert await anext(pieces) == Delta(text="2" * (40 << 10) + "3" * (40 << 10))
    assert await anext(pieces) == answer("0123")


async def test_words_that_wait_take_little_more_than_their_text() -> None:
    """A model gives a word at a time, and each would take a hundred times its letters."""
    backlog = Backlog()
    way = outlet(backlog)
    for number in range(1_000):
        way.put("small", Delta(reasoning="r") if number < 300 else Delta(text="t"))
    held = backlog.held_bytes
    way.end(answer("t" * 700, "r" * 300))

    pieces = [piece async for piece in way.pieces()]

    assert held < 1_000 + 260 * 200
    assert pieces[1:-1] == [Delta(reasoning="r" * 300), Delta(text="t" * 700)]
    way.close()
    assert backlog.held_bytes == 0


async def test_an_answer_that_came_at_once_is_given_in_pieces_too() -> None:
    """A recorded one, or that of another call: readers need not know."""
    way = outlet()
    way.end(answer("ab", "hm"))

    pieces = [piece async for piece in way.pieces()]

    assert pieces[:-1] == [Started("small"), Delta(reasoning="hm"), Delta(text="ab")]


async def test_nothing_is_kept_for_a_reader_who_has_gone() -> None:
    backlog = Backlog()
    way = filled(backlog)
    way.close()
    way.put("small", Delta(text="y"))
    way.end(answer("y"))

    assert [piece async for piece in way.pieces()] == [Started("small")]
    assert backlog.held_bytes == 0


async def test_a_failure_is_told_after_what_came_before_it() -> None:
    way = filled(Backlog())
    way.fail(EOFError())
    pieces = way.pieces()

    assert [await anext(pieces), await anext(pieces)] == [Started("small"), Delta(text=TEXT)]
    with pytest.raises(EOFError):
        await anext(pieces)


async def test_an_answer_of_no_pieces_never_starts() -> None:
    """Then another deployment may still answer."""
    way = outlet()
    way.fail(EOFError())

    with pytest.raises(EOFError):
        await anext(way.pieces())
    assert not way.has_started


@pytest.mark.parametrize(("room", "expected"), [(3 * WAITING, False), (3 * WAITING - 1, True)])
async def test_whoever_reads_least_is_cut_off_where_too_much_waits(
    room: int, expected: bool
) -> None:
    """Two hundred readers who stand still must not take the memory of the service."""
    backlog = Backlog(bytes_max=room)
    slow, quick = filled(backlog, pieces=2), filled(backlog)

    assert await is_cut_off(slow) is expected
    assert not await is_cut_off(quick)


async def test_a_tenants_readers_cost_others_no_stream() -> None:
    backlog = Backlog(tenant_bytes_max=2 * WAITING)
    others = filled(backlog, "globex", pieces=2)
    own = [filled(backlog) for _ in range(3)]

    assert [await is_cut_off(each) for each in own].count(True) == 1
    assert not await is_cut_off(others)


async def test_what_a_reader_has_begun_to_take_counts_until_it_has_it() -> None:
    """It stands in the connection's buffers, where nobody can let go of it."""
    backlog = Backlog()
    way = filled(backlog)
    pieces = way.pieces()
    await anext(pieces)
    await anext(pieces)
    held = backlog.held_bytes
    way.end(answer(TEXT))
    held_after = backlog.held_bytes
    await anext(pieces)

    assert (held, held_after) == (WAITING, WAITING + len(TEXT))
    assert backlog.held_bytes == len(TEXT)
    way.close()
    assert backlog.held_bytes == 0


async def test_an_answer_that_waits_for_its_reader_counts_and_is_let_go_of() -> None:
    """A reader may stop just before the last message, which has all of it again."""
    backlog = Backlog(bytes_max=2 * len(TEXT))
    ways = [outlet(backlog) for _ in range(3)]
    for way in ways:
        way.end(answer(TEXT))

    assert backlog.held_bytes == 2 * len(TEXT)
    assert [await is_cut_off(way) for way in ways].count(True) == 1


async def test_a_reader_who_was_cut_off_hears_of_it_when_it_comes_back() -> None:
    """And gets nothing of what followed: a text with a hole would pass for whole."""
    backlog = Backlog(bytes_max=WAITING)
    way = outlet(backlog)
    pieces = way.pieces()
    reading = asyncio.ensure_future(anext(pieces))
    way.put("small", Delta(text=TEXT))
    way.put("small", Delta(text=TEXT))
    way.put("small", Delta(text="more"))
    way.end(answer(TEXT))

    assert await reading == Started("small")
    with pytest.raises(ServiceError) as caught:
        await anext(pieces)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason_name == "ERROR_REASON_STREAM_READER_SLOW"
    assert caught.value.retry_after_s is not None
    assert backlog.held_bytes == 0

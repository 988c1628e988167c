"""Server-sent events, wherever the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.sse import EVENT_BYTES_MAX, EventParser, EventTooLargeError

STREAM = (
    b"\xef\xbb\xbf: a comment\n"
    b'event: x\ndata: {"a":\ndata: 1}\n\n'
    b"data:no space\r\n\r\n"
    b"id: 7\rdata: old line ends\r\r"
    b"data\n\n"
    b"retry: 10\n\n"
    b"data: last, without a blank line"
)
EVENTS = [b'{"a":\n1}', b"no space", b"old line ends", b"", b"last, without a blank line"]


def parse(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.finish()


def test_every_form_of_line_and_field_is_read() -> None:
    assert parse(STREAM) == EVENTS


@given(cuts=st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=20))
def test_events_do_not_depend_on_where_chunks_are_cut(cuts: list[int]) -> None:
    """Networks cut anywhere, also between CR and LF and inside a character."""
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in itertools.pairwise(edges)]

    assert parse(*chunks) == EVENTS


def test_the_end_of_nothing_is_no_event() -> None:
    assert parse() == []
    assert parse(b"data: x\n\n") == [b"x"]


def test_an_event_of_the_largest_size_is_read() -> None:
    data = b"x" * (EVENT_BYTES_MAX - len(b"data: "))

    assert parse(b"data: " + data, b"\n\n") == [data]


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_a_larger_event_is_refused(line_end: bytes) -> None:
    """A provider cannot fill the gateway's memory with one line, or with many of one event."""
    parser = EventParser()

    with pytest.raises(EventTooLargeError):
        for _ in range(6):
            parser.feed(b"data: " + b"x" * (EVENT_BYTES_MAX // 5) + line_end)

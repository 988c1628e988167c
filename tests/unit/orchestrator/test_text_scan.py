"""The measure of a text equals that of decoding it whole, however it is cut."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.contexts.stored_context import TextShape
from orchestrator.contexts.text_scan import TextScan

TRICKY = [b"A", b"\n", b"\xc3", b"\xa9", b"\xef", b"\xbf", b"\xbd", b"\xf0", b"\x9f", b"\x98\x80"]
TRICKY += ["é".encode(), "\ufffd".encode(), "😀".encode(), b"\xff", b"\xe2\x82", b"\xed\xa0\x80"]


def scanned(*pieces: bytes) -> TextShape:
    scan = TextScan()
    for piece in pieces:
        scan.feed(piece)
    return scan.finish()


class _Counter:
    """Counts malformed sequences by Python's own decoder."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        self.count += 1
        assert isinstance(error, UnicodeDecodeError)
        return "\ufffd", error.end


def expected(data: bytes) -> TextShape:
    counter = _Counter()
    codecs.register_error("fathom-test-count", counter)
    data.decode(errors="fathom-test-count")
    text = data.decode(errors="replace")
    return TextShape(
        characters=len(text),
        code_point_max=max(map(ord, text), default=0),
        lines=text.count("\n") + (text != "" and not text.endswith("\n")),
        malformed_sequences=counter.count,
    )


@settings(max_examples=500)
@given(st.lists(st.sampled_from(TRICKY), max_size=12).map(b"".join), st.lists(st.integers(0, 40)))
def test_a_text_cut_anywhere_measures_the_same(data: bytes, cuts: list[int]) -> None:
    """Chunks of an upload end in the middle of characters."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})

    pieces = [data[start:end] for start, end in pairwise(edges)]

    assert scanned(*pieces) == expected(data)


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("\n", 1), ("\n\n", 2), ("a\r\nb", 2)],
)
def test_lines_are_line_feeds_and_an_unfinished_last_one(text: str, lines: int) -> None:
    assert scanned(text.encode()).lines == lines


@pytest.mark.parametrize("largest", ["\x00", "z", "\x7f", "ÿ", "Ā", "\uffff", "😀", "\U0010ffff"])
def test_the_largest_code_point_is_exact(largest: str) -> None:
    """It decides how many bytes a character takes in the guest's memory."""
    text = "\x00" + largest + "\x00"

    assert scanned(text.encode()).code_point_max == ord(largest)


def test_text_that_climbs_through_the_code_points_is_measured_too() -> None:
    climbing = "".join(map(chr, range(0x100, 0x3000)))

    assert scanned(climbing.encode()).code_point_max == 0x2FFF

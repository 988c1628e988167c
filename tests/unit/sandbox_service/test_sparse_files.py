"""Sparse files laid over one another, against a page by page model of the same."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_service.sparse_files import (
    PAGE_BYTES,
    Run,
    copy_runs,
    extents,
    overlaid,
    read_whole,
    topmost,
)

_PLACES = 40


@st.composite
def runs(draw: st.DrawFn, fd: int) -> list[Run]:
    """Runs of one file, in order and apart."""
    ends = sorted(draw(st.sets(st.integers(0, _PLACES), max_size=12)))
    return [(low, high, fd) for low, high in zip(ends[::2], ends[1::2], strict=False)]


def painted(pieces: list[Run]) -> list[int]:
    places = [0] * _PLACES
    for low, high, fd in pieces:
        assert not any(places[low:high]), "runs must not overlap"
        places[low:high] = [fd] * (high - low)
    return places


@given(runs(1), runs(2))
def test_what_is_above_covers_what_is_below(below: list[Run], above: list[Run]) -> None:
    seen = overlaid(below, above)

    expected = [a or b for a, b in zip(painted(above), painted(below), strict=True)]
    assert painted(seen) == expected
    assert seen == sorted(seen)


def file_of(*pages: int) -> int:
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.ftruncate(fd, _PLACES * PAGE_BYTES)
    for page in pages:
        os.pwrite(fd, bytes([page]) * PAGE_BYTES, page * PAGE_BYTES)
    return fd


def test_the_topmost_page_of_several_files_is_the_one_that_is_copied() -> None:
    below, above, copy = file_of(1, 2, 3), file_of(3, 4), file_of()
    os.pwrite(above, b"x" * PAGE_BYTES, 3 * PAGE_BYTES)

    copy_runs(topmost([below, above]), copy)

    assert list(extents(copy)) == [(PAGE_BYTES, 5 * PAGE_BYTES)]
    firsts = [os.pread(copy, 1, page * PAGE_BYTES) for page in range(1, 5)]
    assert firsts == [b"\1", b"\2", b"x", b"\4"]
    for fd in (below, above, copy):
        os.close(fd)


def test_extents_are_those_within_a_range() -> None:
    fd = file_of(1, 2, 5)

    assert list(extents(fd, 2 * PAGE_BYTES, 5 * PAGE_BYTES + 7)) == [
        (2 * PAGE_BYTES, 3 * PAGE_BYTES),
        (5 * PAGE_BYTES, 5 * PAGE_BYTES + 7),
    ]
    os.close(fd)


def test_reading_beyond_the_end_is_an_error() -> None:
    """A file that was cut under us must not fill memory with what happens to be there."""
    fd = file_of(1)

    with pytest.raises(EOFError):
        read_whole(fd, memoryview(bytearray(2)), _PLACES * PAGE_BYTES - 1)
    os.close(fd)

"""A lazy text against the `str` that it stands for, from the guest's class down to the blob."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blob_index import text_index
from sandbox_service.frames import Mount, Text
from sandbox_service.guest import host, lazy_lines, lazy_text
from sandbox_service.guest.lazy_text import LazyText
from sandbox_service.guest.text_functions import TextFunctions
from sandbox_service.worker import guest_calls, lazy_contexts, lazy_texts, search
from sandbox_service.worker.lazy_contexts import LazyMount

VALUE_BYTES_MAX = 4_000
PIECES = [
    *(b"a", b"b", b" ", b"\n", b"\r\n", "é".encode(), "€".encode(), "\U0001f600".encode()),
    *("\u2028".encode(), "\x85".encode(), b"\x0b", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98"),
    *(b"\xed\xa0\x80", b"\xe0\x80", b"\xc3", b"\x80" * 5, "\ufffd".encode()),
]
"""Characters of every width, every kind of line end, and every way of being no UTF-8."""
BLOBS = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join) | st.binary(max_size=80)
POSITIONS = st.none() | st.integers(-100, 100)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the borders of blocks, windows and pieces fall anywhere in a short text."""
    monkeypatch.setattr(text_index, "BLOCK_BYTES", 16)
    monkeypatch.setattr(lazy_texts, "BLOCK_BYTES", 16)
    monkeypatch.setattr(text_index, "_WINDOW_BLOCKS", 2)
    for name, value in {"_PIECE_BYTES": 8, "_PIECE_BYTES_MIN": 8, "_LOOK_BACK_BYTES": 4}.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(lazy_text, "_WINDOW", 7)
    monkeypatch.setattr(lazy_text, "_NEAR", 3)
    monkeypatch.setattr(lazy_lines, "_WINDOW", 7)
    monkeypatch.setattr(lazy_lines, "_NEAR", 9)
    monkeypatch.setattr(lazy_lines, "_STEPS_NEAR", 3)


@contextlib.contextmanager
def lazy(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[LazyText, str]]:
    """Yield a lazy text of a range of a blob as the guest has it, and the `str` that it is."""
    stop = len(data) if stop is None else stop
    plain = data[start:stop].decode("utf-8", "replace")
    described = Text(
        name="",
        offset_bytes=start,
        size_bytes=stop - start,
        characters=len(plain),
        code_point_max=0,
        is_lazy=True,
    )
    blob, index = os.memfd_create("blob"), os.memfd_create("index")
    try:
        os.write(blob, data)
        text_index.build(blob, len(data), index)
        text_index.TextIndex.checked(index, len(data))
        mount = Mount(variable="context", kind="text", texts=[described], has_index=True)
        held = LazyMount(mount, blob, index)

        def fetch(request: dict[str, Any]) -> bytes:
            question = guest_calls.decode(msgspec.json.encode(request))
            assert isinstance(question, guest_calls.LazyQuestion), request
            return lazy_contexts.answer(held, question, lambda: None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "fetch", fetch)
            yield LazyText(0, 0, len(plain), VALUE_BYTES_MAX), plain
    finally:
        os.close(blob)
        os.close(index)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """Draw a blob and a range of it, which may cut characters in two."""
    data = draw(BLOBS)
    start = draw(st.sampled_from([0, draw(st.integers(0, len(data)))]))
    return data, start, draw(st.sampled_from([len(data), draw(st.integers(start, len(data)))]))


@given(ranges())
def test_the_whole_of_it_is_what_python_decodes(given_range: tuple[bytes, int, int]) -> None:
    with lazy(*given_range) as (text, plain):
        assert len(text) == len(plain)
        assert "".join(text) == plain
        assert text == plain
        assert str(text) == plain
        assert bool(text) == bool(plain)


@given(ranges(), POSITIONS, POSITIONS, st.sampled_from([None, 1, 2, 3, 20, -1, -2, -30]))
def test_a_slice_is_the_slice_of_the_str(
    given_range: tuple[bytes, int, int], start: int | None, stop: int | None, step: int | None
) -> None:
    with lazy(*given_range) as (text, plain):
        assert text[start:stop:step] == plain[start:stop:step]
        if start is not None and -len(plain) <= start < len(plain):
            assert text[start] == plain[start]


@given(ranges(), st.data())
def test_a_search_finds_what_it_finds_in_the_str(
    given_range: tuple[bytes, int, int], data: st.DataObject
) -> None:
    with lazy(*given_range) as (text, plain):
        low = data.draw(st.integers(0, len(plain)))
        some = plain[low : low + data.draw(st.integers(0, 4))]
        needle = data.draw(st.sampled_from([some, "aa", "ab", "b", "\ufffd", "\ud800", "zz"]))
        start, stop = data.draw(POSITIONS), data.draw(POSITIONS)

        for name in ("find", "rfind", "count", "startswith", "endswith"):
            found = getattr(text, name)(needle, start, stop)
            assert found == getattr(plain, name)(needle, start, stop), name
        assert (needle in text) == (needle in plain)


@given(ranges(), POSITIONS, POSITIONS)
def test_lines_end_at_line_feeds_and_nowhere_else(
    given_range: tuple[bytes, int, int], start: int | None, stop: int | None
) -> None:
    with lazy(*given_range) as (text, plain):
        lines = plain.split("\n")

        assert text.line_count == len(text.split("\n")) == len(lines)
        assert list(text.split("\n")) == lines
        assert text.split("\n")[start:stop] == lines[start:stop]
        assert text.lines(start or 0, stop) == lines[start:stop]
        kept = re.findall(r"[^\n]*\n|[^\n]+", plain)
        assert list(text.splitlines(keepends=True)) == kept
        assert list(text.splitlines()) == [line.removesuffix("\n") for line in kept]
        assert [text.splitlines(True)[i] for i in range(len(kept))] == kept


@given(ranges(), st.lists(st.integers(0, 20), max_size=20))
def test_a_line_is_the_same_in_whatever_order_lines_are_asked_for(
    given_range: tuple[bytes, int, int], order: list[int]
) -> None:
    with lazy(*given_range) as (text, plain):
        kept = re.findall(r"[^\n]*\n|[^\n]+", plain)
        for got, wanted in (
            (text.split("\n"), plain.split("\n")),
            (text.splitlines(True), kept),
            (text.splitlines(), [line.removesuffix("\n") for line in kept]),
        ):
            assert [got[i] for i in order if i < len(wanted)] == [
                wanted[i] for i in order if i < len(wanted)
            ]
            assert list(reversed(got)) == wanted[::-1]
            assert [got[i] for i in range(len(got))] == wanted
            assert got[::-2] == wanted[::-2]


def test_a_loop_over_line_numbers_asks_the_host_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the host for each line made a loop over a million of them take minutes."""
    monkeypatch.setattr(lazy_lines, "_NEAR", 2_000)
    monkeypatch.setattr(lazy_text, "_WINDOW", 2_000)
    with lazy(b"a line of a text\n" * 5_000) as (text, plain):
        lines, wanted = text.splitlines(), plain.splitlines()
        asked = host.fetch
        calls: list[dict[str, Any]] = []

        def counted(request: dict[str, Any]) -> bytes:
            calls.append(request)
            return asked(request)

        with monkeypatch.context() as patch:
            patch.setattr(host, "fetch", counted)
            assert [lines[i] for i in range(len(lines))] == wanted
            assert list(reversed(lines)) == wanted[::-1]

    assert len(calls) < len(lines) / 4


def test_lazy_values_stand_for_what_code_asks_for() -> None:
    """`text = context if isinstance(context, str) else "\\n".join(context)` is often written, and
    gave a line for each character."""
    with lazy(b"a\nb") as (text, _):
        assert isinstance(text, str)
        assert isinstance(text.split("\n"), list)
        assert not isinstance(text, list)
        assert type(text) is LazyText


@given(ranges())
def test_a_text_is_gone_through_backwards(given_range: tuple[bytes, int, int]) -> None:
    with lazy(*given_range) as (text, plain):
        assert "".join(reversed(text)) == plain[::-1]


@given(ranges(), st.integers(1, 12), st.data())
def test_chunks_put_together_are_the_text(
    given_range: tuple[bytes, int, int], size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    with lazy(*given_range) as (text, plain):
        functions = TextFunctions({"context": plain})
        for by in ("characters", "lines"):
            parts = list(text.chunks(size, overlap, by))
            assert parts == list(functions.chunks(None, size, overlap, by)), by
            assert "".join(text.chunks(size, by=by)) == plain


PATTERNS = ["a", "ab", "a+", "^a", "b$", "é|b", "[^a]b", "€.", "(a)(b)?"]


@given(ranges(), st.sampled_from(PATTERNS), st.booleans())
def test_grep_finds_in_each_line_what_python_finds(
    given_range: tuple[bytes, int, int], pattern: str, ignore_case: bool
) -> None:
    """RE2 on the host, piece by piece, against `re` on one line after the other."""
    with lazy(*given_range) as (text, plain):
        flags = re.IGNORECASE if ignore_case else 0
        wanted, position = [], 0
        for number, line in enumerate(plain.split("\n")):
            for match in re.finditer(pattern, line, flags):
                place = (position + match.start(), position + match.end())
                wanted.append((*place, number, match.group(), match.groups()))
            position += len(line) + 1

        found = text.grep(pattern, ignore_case=ignore_case, limit=1_000)

        assert [(m.start, m.end, m.line_number, m.text, m.groups()) for m in found] == wanted
        assert all(plain[m.start : m.end] == m.text for m in found)
        assert not found.note


@given(ranges(), st.integers(1, 5))
def test_grep_stops_at_its_limit_and_says_where_to_go_on(
    given_range: tuple[bytes, int, int], limit: int
) -> None:
    with lazy(*given_range) as (text, _):
        every = [(m.start, m.line_number) for m in text.grep("a|b", limit=1_000)]

        found = text.grep("a|b", limit=limit)

        assert [(m.start, m.line_number) for m in found] == every[:limit]
        if len(every) > limit:
            going_on = int(found.note.rpartition("=")[2])
            rest = text.grep("a|b", limit=1_000, start=going_on)
            assert [(m.start, m.line_number) for m in rest] == every[limit:]


@given(ranges(), st.sampled_from(["a", "^a", "b$", "(a)b", "[^a]b"]), st.integers(-5, 20))
def test_grep_of_a_str_is_grep_of_a_lazy_text(
    given_range: tuple[bytes, int, int], pattern: str, start: int
) -> None:
    """A cell need not know which of the two its context is."""
    with lazy(*given_range) as (text, plain):
        functions = TextFunctions({"context": plain})

        of_str = functions.grep(pattern, start=start)
        of_lazy = functions.grep(pattern, text, start=start)

        assert [(m.start, m.end, m.line_number, m.groups()) for m in of_str] == [
            (m.start, m.end, m.line_number, m.groups()) for m in of_lazy
        ]

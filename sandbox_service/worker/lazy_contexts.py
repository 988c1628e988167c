"""Answers what a cell asks about its lazy contexts, each answer of bounded size.

An answer begins with one byte: `=` before what was asked for, `!` before the message of a
ValueError, `?` before that of an OSError.
"""

from __future__ import annotations

import os
import time

import msgspec

from common.blob_index.json_index import TOO_LARGE, WHOLE, Entry, JsonIndex
from common.blob_index.text_index import IndexFormatError, TextIndex
from sandbox_service import texts
from sandbox_service.frames import Mount
from sandbox_service.texts import TextShapeError
from sandbox_service.worker import search
from sandbox_service.worker.guest_calls import (
    FindText,
    GrepText,
    LazyQuestion,
    LineSpan,
    ReadItems,
    ReadText,
    SpanLines,
)
from sandbox_service.worker.lazy_texts import LazyText
from sandbox_service.worker.search import PatternError, Tick

READ_BYTES_MAX = 4 << 20
_ITEMS_MAX = 1_000
_ITEMS_BYTES = 1 << 20
"""Above this an answer holds no more than one item of JSON."""
_TICK_S = 0.005
_OPENED_MAX = 1_000
"""Documents of one context whose place is remembered."""
_GIVEN, _WRONG, _UNREADABLE = b"=", b"!", b"?"


class LazyMount:
    """One context by reference: its blob, its index, and the texts in it."""

    def __init__(self, mount: Mount, fd: int, index_fd: int) -> None:
        """Take a mount and its open files, which the caller closes."""
        self._mount = mount
        self._fd = fd
        self._index_fd = index_fd
        self._index: TextIndex | None = None
        self._items: JsonIndex | None = None
        self._opened: dict[int, LazyText] = {}

    def text(self, number: int) -> LazyText:
        """Return a text.

        Raises IndexError where there is none, texts.TextShapeError or
        text_index.IndexFormatError where it is not as described.
        """
        if self._mount.kind == "json":
            raise IndexError("no text")
        if self._index is None:
            self._index = TextIndex(self._index_fd, os.fstat(self._fd).st_size)
        if number not in self._opened:
            text = self._mount.texts[number]
            opened = LazyText(self._fd, self._index, text.offset_bytes, text.size_bytes)
            if opened.characters != text.characters:
                raise TextShapeError(f"{opened.characters} characters, not {text.characters}")
            while len(self._opened) >= _OPENED_MAX:
                del self._opened[next(iter(self._opened))]
            self._opened[number] = opened
        return self._opened[number]

    def items(self, question: ReadItems, tick: Tick) -> bytes:
        """Return JSON of some items: a list of lists, each of what `json_items` says.

        Raises IndexError, texts.TextShapeError or text_index.IndexFormatError.
        """
        if self._mount.kind != "json":
            raise IndexError("no table")
        if self._items is None:
            self._items = JsonIndex(self._index_fd, os.fstat(self._fd).st_size)
        return json_items(self._fd, self._items, question, tick)


class _Ticks:
    """Passes on a call now and then: a guest that computes is asked no more often, and would
    be given more of the processor than one that has its host search."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._next = time.monotonic() + _TICK_S

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TICK_S
            self._tick()


def answer(mount: LazyMount, question: LazyQuestion, tick: Tick) -> bytes:
    """Return the answer to a question.

    `tick` is called every few milliseconds and may raise to stop a long search.
    """
    tick = _Ticks(tick)
    try:
        if isinstance(question, ReadItems):
            return _GIVEN + mount.items(question, tick)
        text = mount.text(question.text)
        if isinstance(question, ReadText):
            return _GIVEN + _characters(text, question)
        if isinstance(question, SpanLines):
            return _GIVEN + msgspec.json.encode(_span(text, question))
        if isinstance(question, FindText):
            look = {"first": search.find, "last": search.find_last, "count": search.count}
            found = look[question.what](text, question.needle, question.start, question.stop, tick)
            return _GIVEN + msgspec.json.encode(found)
        return _GIVEN + msgspec.json.encode(_matches(text, question, tick))
    except PatternError as error:
        return _WRONG + str(error).encode("utf-8", "replace")
    except IndexError:
        return _WRONG + b"there is no such part of a context"
    except (TextShapeError, IndexFormatError, OSError) as error:
        return _UNREADABLE + f"the context can no longer be read: {error}".encode()


def json_items(fd: int, index: JsonIndex, question: ReadItems, tick: Tick) -> bytes:
    """Return items of a container as JSON: a list of `[key, what, value]`.

    `what` is "value", with the item itself or null; "array" or "object", with the number of its
    table and of its items; or "large", with the size of a string that cannot be parsed.
    """
    kind, _ = index.table(question.table)
    stop = min(question.stop, question.start + _ITEMS_MAX)
    items: list[bytes] = []
    size_bytes = 0
    for entry in index.entries(question.table, question.start, stop):
        tick()
        item = b"[%b,%b]" % (
            texts.whole_range(fd, entry.key, entry.start - entry.key).rstrip(b" \t\n\r:")
            if kind == "object"
            else b"null",
            _json_item(fd, index, entry, question.keys_only),
        )
        size_bytes += len(item)
        if items and size_bytes > _ITEMS_BYTES:
            break
        items.append(item)
    return b"[" + b",".join(items) + b"]"


def _json_item(fd: int, index: JsonIndex, entry: Entry, keys_only: bool) -> bytes:
    if entry.child == TOO_LARGE:
        return b'"large",%d' % (entry.stop - entry.start)
    if entry.child == WHOLE:
        size_bytes = 0 if keys_only else entry.stop - entry.start
        return b'"value",' + (texts.whole_range(fd, entry.start, size_bytes) or b"null")
    kind, count = index.table(entry.child)
    return b'"%b",[%d,%d]' % (kind.encode(), entry.child, count)


def _characters(text: LazyText, question: ReadText) -> bytes:
    start = text.byte_of_character(question.start)
    # No character takes more than four bytes.
    stop_max = min(question.stop, question.start + READ_BYTES_MAX // 4)
    return text.read(start, max(text.byte_of_character(stop_max), start))


def _span(text: LazyText, question: SpanLines) -> LineSpan:
    start = text.byte_of_line(question.start)
    stop = max(text.byte_of_line(question.stop), start)
    return LineSpan(
        start=text.characters_before(start),
        stop=text.characters_before(stop),
        count=text.line_feeds + 1,
    )


def _matches(text: LazyText, question: GrepText, tick: Tick) -> search.Found:
    regex = search.compiled(
        question.pattern, ignore_case=question.ignore_case, is_ascii=text.is_ascii
    )
    return search.grep(
        text,
        regex,
        question.start,
        question.stop,
        limit=question.limit,
        time_s=question.time_s,
        tick=tick,
    )

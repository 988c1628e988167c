"""Searches a lazy text on the host: literals by memory search, patterns by RE2, line by line.

RE2 takes time linear in the text whatever the pattern, and lets go of the interpreter's lock.
The text goes by in pieces; between two of them the caller may stop the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import re2
from msgspec import Struct

from common.blob_index.text_index import RESTART_BYTES, restart_shift
from sandbox_service.worker.lazy_texts import LazyText

MATCHES_MAX = 1_000
"""Matches of one answer; the next answer goes on from there."""
PATTERN_CHARACTERS_MAX = 16 << 10
"""Of a pattern or a literal."""
_SHORT_BYTES = 16
_ANSWER_CHARACTERS = 1 << 20
_PIECE_BYTES = 1 << 20
_PIECE_BYTES_MIN = 4 << 10
_OVERLAP_BYTES = 64 << 10
"""Read beyond a place where a very long line is cut: a shorter match across it is found."""
_LOOK_BACK_BYTES = 1 << 10
_PIECE_TIME_S = 0.005
"""What a piece is to take, so that a search can be stopped in time."""
_PROGRAM_SIZE_MAX = 5_000
_PROGRAM_STEPS = 4_000_000
"""Steps of a pattern's program over the first piece, where its speed is not known yet."""
_PATTERN_MEMORY_BYTES = 16 << 20
_GROUPS_MAX = 20
_MATCH_CHARACTERS_MAX = 2_000
_LINE_CHARACTERS_MAX = 500

Tick = Callable[[], None]
"""Called between pieces; stops the search by raising."""


class PatternError(ValueError):
    """A pattern cannot be searched for; the message says what to do."""


class Match(Struct, frozen=True, kw_only=True):
    """One place that a pattern matches, in characters of the whole text."""

    start: int
    stop: int
    line_number: int
    """Counted from 0."""
    text: str
    """Cut after two thousand characters."""
    line: str
    """The line that it is in, or some of it around the match where it is long."""
    groups: list[str | None]


class Found(Struct, frozen=True, kw_only=True):
    """Some matches of a text, and how to go on."""

    matches: list[Match]
    next_start: int | None
    """Where to go on; None where the text is searched to its end."""
    is_late: bool
    """Whether it stopped because its time was up."""


def compiled(pattern: str, *, ignore_case: bool, is_ascii: bool = False) -> re2._Regexp:
    """Return a pattern that matches within lines, of a text that is said to be ASCII or of any.

    Raises PatternError.
    """
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY_BYTES
    options.log_errors = False
    options.never_nl = True
    options.case_sensitive = not ignore_case
    source = pattern.replace(r"\Z", r"\z").encode("utf-8", "replace")
    if is_ascii and source.isascii() and rb"\x{" not in source:
        # In Unicode, `s` and `k` have a third case, for which RE2 gives up its quick way to find
        # where a match may begin: five times slower.
        options.encoding = re2.Options.Encoding.LATIN1
    try:
        regex = re2._Regexp(b"(?m)" + source, options)  # noqa: SLF001  # compile() keeps all of them
    except re2.error as error:
        problem = error.args[0] if error.args else "not a pattern"
        if isinstance(problem, bytes):
            problem = problem.decode("utf-8", "replace")
        raise PatternError(
            f"grep cannot use this pattern: {problem}. It takes RE2 syntax: no backreferences and "
            "no lookahead or lookbehind; grep for a simpler pattern, then use `re` on the lines"
        ) from error
    if regex.programsize > _PROGRAM_SIZE_MAX:
        raise PatternError("the pattern is too large: use smaller repetition counts, or several")
    return regex


def find(text: LazyText, needle: str, start: int, stop: int, tick: Tick) -> int:
    """Return the first position of a literal within characters `start` to `stop`, or -1."""
    wanted = needle.encode("utf-8", "surrogatepass")
    for piece in _pieces(text, start, stop, len(wanted)):
        tick()
        position = piece.data.find(wanted, 0, piece.size)
        if position >= 0:
            return text.characters_before(piece.start) + _length(piece.data, position)
    return -1


def find_last(text: LazyText, needle: str, start: int, stop: int, tick: Tick) -> int:
    """Return the last position of a literal within characters `start` to `stop`, or -1."""
    wanted = needle.encode("utf-8", "surrogatepass")
    first, last = text.byte_of_character(start), text.byte_of_character(stop)
    end = last
    while end > first:
        tick()
        low = min(text.restart_from(max(end - _PIECE_BYTES, first)), end)
        if low == end:
            low = first
        data = text.clean(low, min(text.restart_from(end + len(wanted)), last))
        position = _last_position(data, wanted)
        if position >= 0:
            return text.characters_before(low) + _length(data, position)
        end = low
    return -1


def count(text: LazyText, needle: str, start: int, stop: int, tick: Tick) -> int:
    """Return how often a literal stands in characters `start` to `stop`, without overlap."""
    wanted = needle.encode("utf-8", "surrogatepass")
    # Where a literal may overlap itself, its places are counted one after the other.
    overlaps = len(wanted) > _SHORT_BYTES or any(
        wanted.startswith(wanted[i:]) for i in range(1, len(wanted))
    )
    counted = carried = 0
    for piece in _pieces(text, start, stop, len(wanted)):
        tick()
        if not overlaps:
            end = min(piece.owned + len(wanted) - 1, piece.size)
            counted += piece.data.count(wanted, 0, end)
            continue
        position = piece.data.find(wanted, carried, piece.size)
        carried = 0
        while 0 <= position < piece.owned:
            counted += 1
            carried = max(position + len(wanted) - piece.owned, 0)
            position = piece.data.find(wanted, position + len(wanted), piece.size)
    return counted


def grep(
    text: LazyText,
    regex: re2._Regexp,
    start: int,
    stop: int,
    *,
    limit: int,
    time_s: float,
    tick: Tick,
) -> Found:
    """Return the first matches within characters `start` to `stop`.

    A match lies within one line. Where a line is longer than a mebibyte, a match of more than
    64 KiB may be missed.
    """
    deadline = time.monotonic() + time_s
    pace = _Pace(regex.programsize)
    position, last = text.byte_of_character(start), text.byte_of_character(stop)
    most = _LOOK_BACK_BYTES + _PIECE_BYTES + _OVERLAP_BYTES + 2 * RESTART_BYTES
    buffer = _buffer(text, max(position - _LOOK_BACK_BYTES, text.start), last, most)
    matches: list[Match] = []
    size = carried = 0
    while position < last:
        tick()
        if time.monotonic() > deadline:
            going_on = text.characters_before(position)
            return Found(matches=matches, next_start=going_on, is_late=True)
        piece = _line_piece(text, position, last, pace.piece_bytes, buffer)
        with pace:
            begin, carried = piece.look_back + carried, 0
            for match, end in _matches(text, regex, piece, begin):
                carried = max(end - piece.owned, 0)
                matches.append(match)
                size += len(match.text) + len(match.line) + sum(len(g or "") for g in match.groups)
                if len(matches) >= limit or size > _ANSWER_CHARACTERS:
                    # An empty match must not be found again.
                    going_on = max(match.stop, match.start + 1)
                    return Found(matches=matches, next_start=going_on, is_late=False)
        position = piece.start + piece.owned_raw
    return Found(matches=matches, next_start=None, is_late=False)


def _last_position(data: bytes, wanted: bytes) -> int:
    """Return what `data.rfind` does, which takes quadratic time for some literals."""
    if len(wanted) <= _SHORT_BYTES:
        return data.rfind(wanted)
    best, low, high = -1, 0, len(data) - len(wanted) + 1
    while low < high:
        middle = (low + high) // 2
        position = data.find(wanted, middle, high + len(wanted) - 1)
        if position < 0:
            high = middle
        else:
            best, low = position, position + 1
    return best


class _Piece(NamedTuple):
    start: int
    """Byte of the blob that its own part begins at."""
    data: bytes | bytearray
    """Good UTF-8; where it is a buffer, valid until the next piece is read."""
    size: int
    """Bytes of the data that count."""
    owned: int
    """Matches that begin at this byte of the data or later belong to the next piece."""
    look_back: int = 0
    """Bytes of the data before its own part."""
    owned_raw: int = 0
    """Length of its own part within the blob."""


def _pieces(text: LazyText, start: int, stop: int, needle_bytes: int) -> Iterator[_Piece]:
    """Cut characters `start` to `stop` into pieces that overlap by a literal's length."""
    position, last = text.byte_of_character(start), text.byte_of_character(stop)
    buffer = _buffer(text, position, last, _PIECE_BYTES + needle_bytes + 2 * RESTART_BYTES)
    while position < last:
        end = min(text.restart_from(position + _PIECE_BYTES), last)
        beyond = min(text.restart_from(end + needle_bytes), last)
        if text.is_plain:
            size = text.read_into(buffer, position, beyond)
            yield _Piece(position, buffer, size, end - position)
        else:
            own = text.clean(position, end)
            data = own + text.clean(end, beyond)
            yield _Piece(position, data, len(data), len(own))
        position = end


def _buffer(text: LazyText, start: int, stop: int, size: int) -> bytearray:
    """Return room for the pieces of a search: one for all of them, since memory that is fresh
    each time costs more than the reading."""
    return bytearray(max(min(size, stop - start), 0) if text.is_plain else 0)


def _line_piece(
    text: LazyText, position: int, last: int, piece_bytes: int, buffer: bytearray
) -> _Piece:
    """Cut a piece that ends with a line, where a line ends within reach."""
    low = min(text.restart_from(max(position - _LOOK_BACK_BYTES, text.start)), position)
    end = min(text.restart_from(position + piece_bytes + _OVERLAP_BYTES), last)
    look_back = position - low
    if text.is_plain:
        size = text.read_into(buffer, low, end)
        cut, is_long = _line_end(buffer, look_back, size, piece_bytes, is_last=end == last)
        size = size if is_long else cut
        owned = cut + (end == last)  # an empty match may stand at the very end
        return _Piece(position, buffer, size, owned, look_back, cut - look_back)
    raw = text.read(position, end)
    cut, is_long = _line_end(raw, 0, len(raw), piece_bytes, is_last=end == last)
    before, own = text.clean(low, position), text.clean(position, position + cut)
    data = before + own + (text.clean(position + cut, end) if is_long else b"")
    owned = len(before) + len(own) + (end == last)
    return _Piece(position, data, len(data), owned, len(before), cut)


def _line_end(
    data: bytes | bytearray, start: int, size: int, piece_bytes: int, *, is_last: bool
) -> tuple[int, bool]:
    """Return where a piece from `start` on is cut, and whether that is within a line."""
    if is_last:
        return size, False
    near = start + piece_bytes
    cut = data.rfind(b"\n", start, near) + 1 or data.find(b"\n", near, size) + 1
    if cut:
        return cut, False
    return near + restart_shift(data[near : near + RESTART_BYTES]), True


def _matches(
    text: LazyText, regex: re2._Regexp, piece: _Piece, begin: int
) -> Iterator[tuple[Match, int]]:
    """Yield the matches of a piece from a byte of its data on, each with the byte it ends at."""
    data, at = piece.data, piece.look_back
    character = line = -1
    for found in regex.finditer(memoryview(data)[: piece.size], begin):
        start, stop = found.span()
        if start >= piece.owned:
            return
        if start == stop < piece.size and data[start] & 0xC0 == 0x80:
            continue  # within a character: RE2 takes bytes
        if character < 0:
            character = text.characters_before(piece.start)
            line = text.line_feeds_before(piece.start)
        character += _length(data, start, at)
        line += data.count(b"\n", at, start)
        at = start
        groups = [_shown(group) for group in found.groups()[:_GROUPS_MAX]]
        match = Match(
            start=character,
            stop=character + _length(data, stop, start),
            line_number=line,
            text=data[start:stop].decode("utf-8", "replace")[:_MATCH_CHARACTERS_MAX],
            line=_line(data, start, stop, piece.size),
            groups=groups,
        )
        yield match, stop


def _line(data: bytes | bytearray, start: int, stop: int, size: int) -> str:
    """Return the line around a match, or what is near the match in a long one."""
    low = data.rfind(b"\n", 0, start) + 1
    high = data.find(b"\n", stop, size)
    high = size if high < 0 else high
    before = data[max(low, start - _LINE_CHARACTERS_MAX) : start].decode("utf-8", "replace")
    after = data[start : min(high, start + 4 * _LINE_CHARACTERS_MAX)].decode("utf-8", "replace")
    if len(before) + len(after) <= _LINE_CHARACTERS_MAX:
        return before + after
    kept = before[-min(len(before), _LINE_CHARACTERS_MAX // 4) :] if before else ""
    return kept + after[: _LINE_CHARACTERS_MAX - len(kept)]


def _shown(group: memoryview | None) -> str | None:
    if group is None:
        return None
    return str(group, "utf-8", "replace")[:_MATCH_CHARACTERS_MAX]


def _length(data: bytes | bytearray, stop: int, start: int = 0) -> int:
    """Return the characters of a range of good UTF-8."""
    part = data[start:stop]
    return len(part) if part.isascii() else len(part.decode("utf-8", "replace"))


class _Pace:
    """Chooses how much of a text goes by at a time, from how long the last piece took."""

    def __init__(self, program_size: int) -> None:
        cautious = _PROGRAM_STEPS // max(program_size, 1)
        self.piece_bytes = min(max(cautious, _PIECE_BYTES_MIN), _PIECE_BYTES)
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        took_s = time.monotonic() - self._began
        if took_s < _PIECE_TIME_S / 2:
            self.piece_bytes = min(self.piece_bytes * 2, _PIECE_BYTES)
        elif took_s > _PIECE_TIME_S * 2:
            self.piece_bytes = max(self.piece_bytes // 2, _PIECE_BYTES_MIN)

"""A text too large for the session's memory: read and searched piece by piece by the host.

It has the useful surface of `str` without being one: code in C would find an empty buffer.
Lines end at "\\n" and nowhere else.
"""

import json
import operator
from collections.abc import Iterator
from typing import Any, NoReturn

from . import host
from .lazy_lines import LazyLines
from .matches import Match, Matches, pattern_of

_WINDOW = 1 << 20
"""Characters that one answer of the host holds."""
_NEAR = 4_096
"""Characters read ahead for a loop over single positions."""
_NEEDLE_MAX = 16 << 10
_MATCHES_MAX = 1_000
_HEAD = 80
_ADVICE = (
    "use context.grep(pattern), context.find(text), context[start:end], context.lines(a, b) or "
    "`for part in context.chunks(size)`; each gives real str values"
)
_STANDS_FOR = ("str", "list", "dict")
_KINDS = {
    "LazyText": f"the text is too large to be one str: {_ADVICE}",
    "LazyLines": "the lines are read as they are needed: take some with lines[a:b], a real list",
    "LazyDocuments": (
        "the documents are read one by one: use context[name], `for name, text in "
        "context.items()` or grep(pattern)"
    ),
    "LazyItems": "the items are read as they are needed: take some with context[a:b], a real list",
    "LazyMapping": "the items are read as they are needed: take those that you need, by their key",
}
"""What to do where code has met a lazy value that it cannot work with, by its type."""
_NO_JSON = frozenset(f"Object of type {name} is not JSON serializable" for name in _STANDS_FOR)


def asked(request: dict[str, Any]) -> Any:
    """Return the host's answer as UTF-8; raises ValueError or OSError as it says."""
    answer = host.fetch(request)
    kind = answer[:1]
    if kind == b"!":
        raise ValueError(answer[1:].decode("utf-8", "replace"))
    if kind == b"?":
        raise OSError(answer[1:].decode("utf-8", "replace"))
    return memoryview(answer)[1:]


class LazyText:
    """A huge text that is read on demand. Use it like a `str`:

    len(context), context[1000:2000], "x" in context, context.find("x"), context.count("x"),
    for line in context.splitlines(): ...

    and, much faster than a loop:

    context.grep(r"error \\d+", limit=20)   matches with .line_number, .line, .start, .end, .text
    context.lines(10, 20)                  ten lines, counted from 0
    context.chunks(100_000, overlap=200)   parts as real str, one after the other

    Slices are real str. What would need the whole text at once (re.findall, lower, replace,
    encode) raises an error that says what to use.
    """

    __slots__ = (
        *("_length", "_line_count", "_mount", "_near", "_number", "_value_max"),
        "document",
    )

    def __init__(
        self, mount: int, number: int, length: int, value_bytes_max: int, document: str = ""
    ) -> None:
        self.document = document
        self._mount = mount
        self._number = number
        self._length = length
        self._value_max = value_bytes_max // 2  # a value and its parts are held at a time
        self._line_count: int | None = None
        self._near = (0, "")

    # Size and shape

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for: code asks `isinstance(context, str)` to know how to go on."""
        return str

    def is_of(self, mount: int) -> bool:
        """Tell whether it belongs to a context, by the context's number."""
        return self._mount == mount

    @property
    def characters(self) -> int:
        """Its length, also where that is more than `len` can say."""
        return self._length

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return self._length > 0

    def __repr__(self) -> str:
        head = self[:_HEAD]
        more = "..." if self._length > _HEAD else ""
        return (
            f"<LazyText of {self._length:,} characters: {head!r}{more}; read it with "
            "[start:end], .lines(a, b), .chunks(size), .grep(pattern)>"
        )

    def __str__(self) -> str:
        """Return the text itself where it fits into memory."""
        self._require_room(self._length, "made one str of")
        return self._read(0, self._length)

    def __format__(self, form: str) -> str:
        return format(str(self), form)

    # Reading

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            return self._slice(*key.indices(self._length))
        position = operator.index(key)
        if position < 0:
            position += self._length
        if not 0 <= position < self._length:
            raise IndexError("string index out of range")
        start, text = self._near
        if not start <= position < start + len(text):
            # A loop that goes backwards finds before it what it asks for next.
            start = position if position >= start else max(position - _NEAR + 1, 0)
            text = self._read(start, min(start + _NEAR, self._length))
            self._near = start, text
        return text[position - start]

    def __iter__(self) -> Iterator[str]:
        for window in self._windows():
            yield from window

    def chunks(self, size: int, overlap: int = 0, by: str = "characters") -> Iterator[str]:
        """Yield the text in parts of `size` characters, or of `size` lines with by="lines".

        Each part begins `overlap` characters (or lines) before the end of the one before.
        """
        size, overlap, by = checked_chunks(size, overlap, by)
        return self._chunks(size, overlap) if by == "characters" else self._groups(size, overlap)

    def lines(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return lines `start` to `stop`, counted from 0, as `text.split("\\n")[start:stop]`."""
        count = self.line_count
        start, stop, _ = slice(start, stop).indices(count)
        if stop <= start:
            return []
        low, high = self._span(start, stop)
        if 2 * (high - low) + 60 * (stop - start) > self._value_max:
            raise ValueError(
                f"{stop - start:,} lines of {high - low:,} characters are too many at a time: take "
                "fewer, `for line in context.splitlines()`, context.grep(pattern), or a part with "
                f"context[{low}:{low + _WINDOW}]"
            )
        lines = self._read(low, high).split("\n")
        return lines[: stop - start]  # behind the last line feed there is an empty rest

    @property
    def line_count(self) -> int:
        """Lines that it has: one more than it has line feeds."""
        if self._line_count is None:
            self._line_count = self._spanned(0, 0)["count"]
        return self._line_count

    def line_start(self, line_number: int) -> int:
        """Return the position of a line's first character; of the end where there is none."""
        return self._span(line_number, line_number)[0]

    def split(self, sep: str | None = None, maxsplit: int = -1) -> Any:
        """Split at a separator; at "\\n" a sequence of lines that are read as they are needed."""
        if sep == "\n" and maxsplit == -1:
            return LazyLines(self, 0, self.line_count)
        self._require_room(4 * self._length, "split")
        return self._read(0, self._length).split(sep, maxsplit)

    def splitlines(self, keepends: bool = False) -> Any:
        """Return the lines as a sequence that reads them as they are needed; they end at "\\n"."""
        has_rest = self._length > 0 and self[-1] != "\n"
        return LazyLines(self, 0, self.line_count - (not has_rest), keepends)

    # Searching

    def grep(
        self,
        pattern: Any,
        *,
        ignore_case: bool = False,
        limit: int = 100,
        start: int = 0,
        stop: int | None = None,
        timeout: float = 30.0,
    ) -> Matches:
        """Search for a regular expression, line by line, at a gigabyte a second.

        Returns a list of at most `limit` matches, each with .line_number (from 0), .line,
        .text, .groups(), and .start and .end for context[m.start:m.end]. Its .note says when the
        limit or the time cut it off. RE2 syntax: no backreferences, no lookaround.
        """
        pattern, ignore_case = pattern_of(pattern, ignore_case)
        start, stop, _ = slice(start, stop).indices(self._length)
        matches = Matches()
        wanted = operator.index(limit)
        position: int | None = start
        while position is not None and position < stop and len(matches) < wanted:
            request = {
                "call": "grep",
                "pattern": pattern,
                "ignore_case": ignore_case,
                "start": position,
                "stop": stop,
                "limit": min(wanted - len(matches), _MATCHES_MAX),
                "time_s": float(timeout),
            }
            found = self._json(request)
            matches += [Match(**match) for match in found["matches"]]
            position = found["next_start"]
            if found["is_late"]:
                matches.note = f"stopped after {timeout:g} s at position {position:,}"
                return matches
        if position is not None and position < stop:
            matches.note = f"stopped at the limit of {wanted:,}; go on with start={position}"
        return matches

    def __contains__(self, needle: Any) -> bool:
        if not isinstance(needle, (str, LazyText)):
            kind = type(needle).__name__
            raise TypeError(f"'in <string>' requires string as left operand, not {kind}")
        return self.find(str(needle)) >= 0

    def find(self, sub: str, start: int | None = None, end: int | None = None) -> int:
        """Return the first position of a text, or -1."""
        return self._found(sub, start, end, "first")

    def rfind(self, sub: str, start: int | None = None, end: int | None = None) -> int:
        """Return the last position of a text, or -1."""
        return self._found(sub, start, end, "last")

    def index(self, sub: str, start: int | None = None, end: int | None = None) -> int:
        """Return the first position of a text; raises ValueError where there is none."""
        return _required(self.find(sub, start, end))

    def rindex(self, sub: str, start: int | None = None, end: int | None = None) -> int:
        """Return the last position of a text; raises ValueError where there is none."""
        return _required(self.rfind(sub, start, end))

    def count(self, sub: str, start: int | None = None, end: int | None = None) -> int:
        """Return how often a text occurs, without overlap."""
        low, high, _ = slice(start, end).indices(self._length)
        if not _text(sub):
            return max(high - low + 1, 0) if (start or 0) <= self._length else 0
        return self._asked_for(sub, low, high, "count", 0)

    def startswith(self, prefix: Any, start: int | None = None, end: int | None = None) -> bool:
        """Tell whether a part begins with a text, or with one of a tuple of them."""
        return self._has_edge(prefix, start, end, lambda low, _, size: (low, low + size))

    def endswith(self, suffix: Any, start: int | None = None, end: int | None = None) -> bool:
        """Tell whether a part ends with a text, or with one of a tuple of them."""
        return self._has_edge(suffix, start, end, lambda _, high, size: (high - size, high))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, (str, LazyText)):
            return NotImplemented
        if type(other).__len__(other) != self._length:  # type: ignore[arg-type]
            return False
        position = 0
        for window in self._windows():
            if other[position : position + len(window)] != window:
                return False
            position += len(window)
        return True

    def __hash__(self) -> int:
        raise TypeError("unhashable type: 'LazyText': use positions or short slices as keys")

    # What needs the whole text

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)

    def __mul__(self, times: int) -> str:
        return str(self) * times

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(str, name):
            raise AttributeError(f"'LazyText' object has no attribute {name!r}")
        self._require_room(4 * self._length, f"put through .{name}()")
        return getattr(str(self), name)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a lazy text cannot be copied or pickled: {_ADVICE}")

    def __copy__(self) -> "LazyText":
        return self

    def __deepcopy__(self, _: Any) -> "LazyText":
        return self

    # The rest

    def _require_room(self, size: int, done: str) -> None:
        if size > self._value_max:
            raise ValueError(
                f"this text of {self._length:,} characters cannot be {done} at once in this "
                f"session's memory: {_ADVICE}"
            )

    def _slice(self, start: int, stop: int, step: int) -> str:
        count = max(0, -(-(stop - start) // step))
        if count > self._value_max:
            raise ValueError(
                f"a slice of {count:,} characters does not fit: at most {self._value_max:,} at a "
                f"time in this session; {_ADVICE}"
            )
        if step == 1:
            return self._read(start, stop) if count else ""
        if step < 0:
            start, step = start + (count - 1) * step, -step
            return self._slice(start, start + (count - 1) * step + 1, step)[::-1] if count else ""
        stride = max(_WINDOW // step, 1) * step
        starts = range(start, stop, stride)
        return "".join(self._read(low, min(low + stride, stop))[::step] for low in starts)

    def _read(self, start: int, stop: int) -> str:
        parts = []
        while start < stop:
            end = min(start + _WINDOW, stop)
            request = {"call": "read", "start": start, "stop": end}
            parts.append(str(asked(request | self._address()), "utf-8", "replace"))
            if len(parts[-1]) != end - start:
                raise OSError("the context is not what it was")
            start = end
        return parts[0] if len(parts) == 1 else "".join(parts)

    def _windows(self) -> Iterator[str]:
        for start in range(0, self._length, _WINDOW):
            yield self._read(start, min(start + _WINDOW, self._length))

    def _chunks(self, size: int, overlap: int) -> Iterator[str]:
        start = 0
        while start < self._length:
            yield self[start : start + size]
            if start + size >= self._length:
                return
            start += size - overlap

    def _groups(self, size: int, overlap: int) -> Iterator[str]:
        count = len(self.splitlines())
        start = 0
        while start < count:
            low, high = self._span(start, start + size)
            yield self[low:high]
            if start + size >= count:
                return
            start += size - overlap

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        span = self._spanned(start, stop)
        return span["start"], span["stop"]

    def _spanned(self, start: int, stop: int) -> dict[str, int]:
        spanned: dict[str, int] = self._json({"call": "span", "start": start, "stop": stop})
        return spanned

    def _found(self, sub: str, start: int | None, end: int | None, what: str) -> int:
        low, high, _ = slice(start, end).indices(self._length)
        if not _text(sub):
            outside = start is not None and start > self._length
            return -1 if outside or low > high else (low if what == "first" else high)
        return self._asked_for(sub, low, high, what, -1)

    def _asked_for(self, sub: str, start: int, stop: int, what: str, nothing: int) -> int:
        if len(sub) > stop - start:
            return nothing
        if len(sub) > _NEEDLE_MAX:
            raise ValueError(f"a text to look for has at most {_NEEDLE_MAX:,} characters")
        try:
            sub.encode()
        except UnicodeEncodeError:  # half a character, which no text holds
            return nothing
        request = {"call": "find", "needle": sub, "start": start, "stop": stop, "what": what}
        return int(self._json(request))

    def _has_edge(self, edges: Any, start: int | None, end: int | None, place: Any) -> bool:
        low, high, _ = slice(start, end).indices(self._length)
        if start is not None and start > self._length:
            return False
        for edge in edges if isinstance(edges, tuple) else (edges,):
            if len(_text(edge)) <= high - low:
                begin, stop = place(low, high, len(edge))
                if self[begin:stop] == edge:
                    return True
        return False

    def _json(self, request: dict[str, Any]) -> Any:
        return json.loads(str(asked(request | self._address()), "utf-8"))

    def _address(self) -> dict[str, int]:
        return {"mount": self._mount, "text": self._number}


def checked_chunks(size: int, overlap: int, by: str) -> tuple[int, int, str]:
    """Return what `chunks` was given; raises ValueError for what makes no sense."""
    size, overlap = operator.index(size), operator.index(overlap)
    if size < 1 or not 0 <= overlap < size:
        raise ValueError("chunks: size must be 1 or more, overlap from 0 to below size")
    if by not in ("characters", "lines"):
        raise ValueError('chunks: by is "characters" or "lines"')
    return size, overlap, by


def advice(error: BaseException) -> str | None:
    """Return what to do about an error that a lazy value in the place of a real one has caused."""
    message = str(error)
    if isinstance(error, TypeError) and message in _NO_JSON:  # real ones are
        return "a part of it is lazy, read as it is needed: put real values together first"
    if isinstance(error, (TypeError, AttributeError)):
        return next((what for name, what in _KINDS.items() if name in message), None)
    if isinstance(error, OverflowError) and "index-sized" in message:
        return "a text of more than 2,147,483,647 characters has its length in text.characters"
    return None


def _required(position: int) -> int:
    if position < 0:
        raise ValueError("substring not found")
    return position


def _text(value: Any) -> str:
    if isinstance(value, LazyText):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"must be str, not {type(value).__name__}")
    return value

"""The lines of a lazy text as a sequence, each read when it is needed."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

_WINDOW = 1 << 20
"""Characters that are read ahead when lines are gone through in order."""
_NEAR = 64 << 10
"""Characters read around a line, for a loop over line numbers in either direction."""
_STEPS_NEAR = 100
"""Lines between one line asked for and the next, at most, to be such a loop."""


class LazyLines(Sequence[str]):
    """The lines of a lazy text, each read when it is needed. Slices are lists."""

    def __init__(self, text: Any, start: int, stop: int, keepends: bool = False) -> None:
        self._text = text
        self._start = start
        self._stop = max(stop, start)
        self._keepends = keepends
        self._near: tuple[int, list[str]] = (0, [])

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for: code asks `isinstance(context, list)` to know how to go on."""
        return list

    def __len__(self) -> int:
        return self._stop - self._start

    def __repr__(self) -> str:
        return f"<LazyLines: {len(self):,} lines of a lazy text, read as they are needed>"

    def __getitem__(self, key: Any) -> Any:
        count = self._stop - self._start
        if not isinstance(key, slice):
            position = operator.index(key)
            position += count if position < 0 else 0
            if not 0 <= position < count:
                raise IndexError("list index out of range")
            return self._line(position)
        start, stop, step = key.indices(count)
        if step == 1:
            return self._lines(start, stop)
        return [self[position] for position in range(start, stop, step)]

    def __iter__(self) -> Iterator[str]:
        left = self._stop - self._start
        rest: list[str] = []
        low = self._text.line_start(self._start)
        end = "\n" if self._keepends else ""
        while left > 0 and low < self._text.characters:
            window = self._text[low : low + _WINDOW]
            low += len(window)
            first, *lines = window.split("\n")
            rest.append(first)
            if not lines:
                continue
            lines.insert(0, "".join(rest))
            rest = [lines.pop()]
            for line in lines[:left]:
                yield line + end
            left -= len(lines)
        if left > 0:
            yield "".join(rest)

    def _line(self, position: int) -> str:
        """Return a line, reading around it where lines near it have been asked for."""
        first, lines = self._near
        last = first + len(lines)
        if not first <= position < last:
            is_next = last <= position < last + _STEPS_NEAR and lines
            is_before = first - _STEPS_NEAR <= position < first
            if is_next:
                self._near = position, self._following(position)
            elif is_before:
                lines = self._preceding(position)
                self._near = position + 1 - len(lines), lines
            else:
                self._near = position, self._lines(position, position + 1)
            first, lines = self._near
        return lines[position - first]

    def _following(self, position: int) -> list[str]:
        """Return a line and some of those behind it."""
        low = self._text.line_start(self._start + position)
        lines = self._ended(self._text[low : low + _NEAR].split("\n")[:-1])
        return lines[: len(self) - position] or self._lines(position, position + 1)

    def _preceding(self, position: int) -> list[str]:
        """Return a line and some of those before it."""
        if self._start + position + 1 >= self._text.line_count:  # it may have no line feed
            return self._lines(position, position + 1)
        high = self._text.line_start(self._start + position + 1)
        low = max(high - _NEAR, 0)
        # The first is only the end of a line, and behind the last line feed is nothing.
        whole = self._text[low:high].split("\n")[1:-1]
        return self._ended(whole)[-position - 1 :] or self._lines(position, position + 1)

    def _ended(self, lines: list[str]) -> list[str]:
        return [line + "\n" for line in lines] if self._keepends else lines

    def _lines(self, start: int, stop: int) -> list[str]:
        lines: list[str] = self._text.lines(self._start + start, self._start + max(stop, start))
        if not self._keepends:
            return lines
        last = self._text.line_count - 1 - self._start - start
        return [line if number == last else line + "\n" for number, line in enumerate(lines)]

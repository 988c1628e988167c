"""The lines of a lazy text as a sequence, each read when it is needed."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

_WINDOW = 1 << 20
"""Characters that are read ahead when lines are gone through in order."""


class LazyLines(Sequence[str]):
    """The lines of a lazy text, each read when it is needed. Slices are lists."""

    def __init__(self, text: Any, start: int, stop: int, keepends: bool = False) -> None:
        self._text = text
        self._start = start
        self._stop = max(stop, start)
        self._keepends = keepends

    def __len__(self) -> int:
        return self._stop - self._start

    def __repr__(self) -> str:
        return f"<{self._stop - self._start:,} lines of a lazy text, read as they are needed>"

    def __getitem__(self, key: Any) -> Any:
        count = self._stop - self._start
        if not isinstance(key, slice):
            position = operator.index(key)
            position += count if position < 0 else 0
            if not 0 <= position < count:
                raise IndexError("list index out of range")
            return self._lines(position, position + 1)[0]
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

    def _lines(self, start: int, stop: int) -> list[str]:
        lines: list[str] = self._text.lines(self._start + start, self._start + max(stop, start))
        if not self._keepends:
            return lines
        last = self._text.line_count - 1 - self._start - start
        return [line if number == last else line + "\n" for number, line in enumerate(lines)]

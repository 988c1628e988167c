"""What `grep` gives: matches, each with its line and its place in the text."""

import re
from collections.abc import Sequence
from typing import Any


class Match:
    """One place where a pattern matches."""

    __slots__ = ("_groups", "document", "end", "line", "line_number", "start", "text")

    def __init__(
        self,
        *,
        start: int,
        stop: int,
        line_number: int,
        text: str,
        line: str,
        groups: Sequence[str | None],
    ) -> None:
        self.start = start
        self.end = stop
        self.line_number = line_number
        self.text = text
        self.line = line
        self.document: str | None = None
        self._groups = list(groups)

    def __repr__(self) -> str:
        where = f"{self.document!r}, " if self.document is not None else ""
        return f"<match in {where}line {self.line_number:,} at {self.start}: {self.line[:200]!r}>"

    def __str__(self) -> str:
        return self.line

    def span(self) -> tuple[int, int]:
        """Return start and end."""
        return self.start, self.end

    def group(self, number: int = 0) -> str | None:
        """Return what a group matched, 0 being the whole."""
        return self.text if number == 0 else self._groups[number - 1]

    __getitem__ = group

    def groups(self) -> tuple[str | None, ...]:
        """Return what all groups matched."""
        return tuple(self._groups)


class Matches(list[Match]):
    """A list of matches; `note` says so where there may be more."""

    note = ""

    def __repr__(self) -> str:
        return list.__repr__(self) + (f"  # {self.note}" if self.note else "")


def pattern_of(pattern: Any, ignore_case: bool) -> tuple[str, bool]:
    """Return a pattern's source and whether case does not matter; takes compiled ones too."""
    if isinstance(pattern, re.Pattern):
        return _source(pattern.pattern), ignore_case or bool(pattern.flags & re.IGNORECASE)
    return _source(pattern), bool(ignore_case)


def _source(pattern: Any) -> str:
    if issubclass(type(pattern), str):  # isinstance would take a lazy text for one
        return pattern  # type: ignore[no-any-return]
    raise TypeError(f"a pattern is a str, not {type(pattern).__name__}")

"""The streams that a cell writes to: each line is let out at once, however the cell ends.

One huge write keeps its head and its tail: nobody reads megabytes, and they would use up the
room of what is printed afterwards.
"""

import io
import sys

WRITE_CHARACTERS_MAX = 256 << 10
_HEAD_CHARACTERS = 192 << 10
_TAIL_CHARACTERS = 48 << 10


def install() -> None:
    """Put both streams where Python looks for them."""
    sys.stdout = sys.__stdout__ = _by_line(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _by_line(2)  # type: ignore[misc]


def reopen() -> None:
    """Put them back where a cell has closed one: else nothing would ever be seen again."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed:
            install()


def shown(text: str, is_literal: bool = False) -> str:
    """Return a text as it is shown: whole, or head and tail with a note of what is between.

    `is_literal` gives its repr, without making that of the whole.
    """
    form = repr if is_literal else str
    if len(text) <= WRITE_CHARACTERS_MAX:
        return form(text)
    # Escapes make a repr up to four times as long, but for the rarest characters.
    head = _HEAD_CHARACTERS // 4 if is_literal else _HEAD_CHARACTERS
    tail = _TAIL_CHARACTERS // 4 if is_literal else _TAIL_CHARACTERS
    dropped = len(text) - head - tail
    note = f"\n[{dropped:,} of {len(text):,} characters left out: print a slice, or a count]\n"
    return form(text[:head]) + note + form(text[-tail:])


class _CutText(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        """Write a text as it is shown."""
        if type(text) is str and len(text) > WRITE_CHARACTERS_MAX:
            text = shown(text)
        return super().write(text)


def _by_line(fd: int) -> io.TextIOWrapper:
    return _CutText(
        io.FileIO(fd, "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=True,
    )

"""The streams that a cell writes to: each line is let out at once, however the cell ends."""

import io
import sys


def install() -> None:
    """Put both streams where Python looks for them."""
    sys.stdout = sys.__stdout__ = _by_line(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _by_line(2)  # type: ignore[misc]


def reopen() -> None:
    """Put them back where a cell has closed one: else nothing would ever be seen again."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed:
            install()


def _by_line(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.FileIO(fd, "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=True,
    )

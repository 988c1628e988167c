"""Run once, when the warm image is made: imports what cells commonly use and sets the stage."""

import builtins
import importlib
import io
import sys

from . import event_loop
from .cells import Session

_COMMON_MODULES = """
bisect collections csv dataclasses datetime decimal difflib enum fractions functools heapq io
itertools json math operator pprint random re statistics string textwrap time typing
""".split()  # noqa: SIM905  # a list of them would be 23 lines


def prepare() -> Session:
    """Make the session object that every session's image starts with."""
    for name in _COMMON_MODULES:
        importlib.import_module(name)
    sys.stdout = sys.__stdout__ = _by_line(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _by_line(2)  # type: ignore[misc]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    event_loop.install()
    return Session()


def _by_line(fd: int) -> io.TextIOWrapper:
    """Return a stream that lets each line out at once: it is seen however the cell ends."""
    return io.TextIOWrapper(
        io.FileIO(fd, "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=True,
    )

"""Run once, when the warm image is made: imports what cells commonly use and sets the stage."""

import builtins
import importlib
import sys

from . import event_loop, streams
from .cells import Session

_COMMON_MODULES = """
bisect collections csv dataclasses datetime decimal difflib enum fractions functools heapq io
itertools json math operator pprint random re statistics string textwrap time typing
""".split()  # noqa: SIM905  # a list of them would be 23 lines


def prepare() -> Session:
    """Make the session object that every session's image starts with."""
    for name in _COMMON_MODULES:
        importlib.import_module(name)
    streams.install()
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    event_loop.install()
    session = Session()
    # Every cell begins by compiling the call of this name: a short one saves a fifth of an
    # empty cell.
    builtins.__cell__ = session.run  # type: ignore[attr-defined]
    return session

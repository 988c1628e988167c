"""Run once, when the warm image is made: imports what cells commonly use and sets the stage."""

import builtins
import importlib
import sys

from . import awaiting, event_loop, executors, manual, stepwise, streams
from .cells import Session

_COMMON_MODULES = """
array base64 binascii bisect calendar collections concurrent.futures copy csv dataclasses datetime
decimal difflib enum fnmatch fractions functools hashlib heapq hmac html html.parser io itertools
json math operator pickle pprint random re secrets shlex statistics string struct textwrap time
typing unicodedata urllib.parse uuid xml.etree.ElementTree zlib zoneinfo
""".split()  # noqa: SIM905  # a list of them would be 50 lines


def prepare() -> Session:
    """Make the session object that every session's image starts with."""
    for name in _COMMON_MODULES:
        importlib.import_module(name)
    streams.install()
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    event_loop.install()
    executors.install()
    awaiting.install()
    builtins.__dict__[stepwise.IN_STEPS] = stepwise.in_steps
    session = Session()
    builtins.help = manual.Help(session.namespace, session.answers.provided)  # type: ignore[assignment]
    # Every cell begins by compiling the call of this name: a short one saves a fifth of an
    # empty cell.
    builtins.__cell__ = session.run  # type: ignore[attr-defined]
    return session

"""An attempt of native code that has left the guest: a function that makes its calls through the C
library. How the last of them ended is its outcome: `done`, or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True)
class Surroundings:
    """What is outside of the jail, for attempts to reach for."""

    secret_file: str = ""
    """A file that anyone may read and write."""
    private_file: str = ""
    """A file that only the user who runs the tests may read."""
    folder: str = ""
    """A folder that anyone may write to."""
    parent: int = 0
    """The process that started this one."""
    neighbour: int = 0
    """Another process of the same user."""
    abstract_socket: str = ""
    """Name of an abstract Unix socket that listens."""
    port: int = 0
    """A TCP port that listens on loopback."""


Attempt = Callable[[Surroundings], str | None]
ATTEMPTS: dict[str, Attempt] = {}
"""By name."""


def attempt(function: Attempt) -> Attempt:
    """Register an attempt under its name; it raises, returns what it saw, or has succeeded."""
    ATTEMPTS[function.__name__] = function
    return function


def outcome_of(name: str, around: Surroundings) -> str:
    """Make one attempt and say how it ended."""
    try:
        answer = ATTEMPTS[name](around)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done" if answer is None else answer


def checked(result: int) -> int:
    """Return what a function of the C library gave; OSError where it failed."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

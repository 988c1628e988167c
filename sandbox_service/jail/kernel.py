"""System calls that Python has no function for, made through the C library.

A thin layer: numbers and structures in, a result or an OSError out. It knows no policy.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Any

from sandbox_service.jail.syscall_numbers import SyscallNumbers, numbers_of
from sandbox_service.jail.wall import WallError

Argument = int | bytes | ctypes.Array[Any] | None
"""A number, bytes to read, room to write to, or no address."""


def syscall(name: str, *arguments: Argument) -> int:
    """Make a system call by name; raises OSError where the kernel refuses it."""
    return _checked(_libc().syscall(_long(numbers()[name]), *map(_long, arguments)), name)


def prctl(option: int, *arguments: int) -> int:
    """Change something about the calling process or thread; raises OSError."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc().prctl(option, *map(_long, padded)), f"prctl {option}")


@functools.cache
def numbers() -> SyscallNumbers:
    """Return the numbers of system calls here; raises WallError on an unknown architecture."""
    found = numbers_of(platform.machine())
    if found is None:
        raise WallError(f"system calls of {platform.machine()} are not known")
    return found


def _long(value: Argument) -> object:
    # The C functions are variadic: of a plain number ctypes would pass 32 bits.
    return ctypes.c_long(value or 0) if value is None or isinstance(value, int) else value


def _checked(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc

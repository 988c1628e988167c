"""Attempts to make code of data, or memory that nobody counts."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import LIBC, Surroundings, attempt, checked

MAPPED = mmap.mmap(-1, 4096)
CODE = mmap.mmap(
    -1,
    4096,
    flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
)


@attempt
def map_executable_memory(_: Surroundings) -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = LIBC.mmap(None, 4096, protection, flags, -1, 0)
    checked(-1 if address == ctypes.c_void_p(-1).value else 0)


@attempt
def make_memory_executable(_: Surroundings) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    checked(LIBC.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_EXEC))


@attempt
def see_code_that_can_be_written(_: Surroundings) -> str:
    """Ours, at least, and as a rule that of callbacks."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return str(sum("wx" in line.split()[1] for line in lines))


@attempt
def write_to_code(_: Surroundings) -> None:
    CODE[0] = 0


@attempt
def make_a_file_in_memory(_: Surroundings) -> None:
    checked(LIBC.memfd_create(b"x", 0))


@attempt
def make_reading_mean_executing(_: Surroundings) -> None:
    kernel.syscall("personality", 0x0400000)


@attempt
def lock_memory(_: Surroundings) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    checked(LIBC.mlock(ctypes.c_void_p(address), 4096))


@attempt
def write_a_huge_file(_: Surroundings) -> None:
    fd = checked(LIBC.memfd_create(b"x", 0))
    os.ftruncate(fd, (4 << 30) + 1)

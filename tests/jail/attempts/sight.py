"""What a process sees of its surroundings without asking for anything."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import LIBC, Surroundings, attempt
from tests.jail.attempts.memory import MAPPED


@attempt
def see_core_limit(_: Surroundings) -> str:
    return str(resource.getrlimit(resource.RLIMIT_CORE))


@attempt
def count_open_descriptors(_: Surroundings) -> str:
    return str(sum(LIBC.fcntl(fd, 1, 0) != -1 for fd in range(1024)))


@attempt
def see_the_environment(_: Surroundings) -> str:
    first = ctypes.c_void_p.in_dll(LIBC, "environ").value
    entry = ctypes.c_char_p.from_address(first).value if first else None
    return repr(entry)


@attempt
def see_the_folder(_: Surroundings) -> str:
    return str(Path.cwd())


@attempt
def see_the_file_mask(_: Surroundings) -> str:
    return oct(os.umask(0))


@attempt
def read_standard_input(_: Surroundings) -> str:
    return repr(os.read(0, 1))


@attempt
def see_whether_traceable(_: Surroundings) -> str:
    return str(kernel.prctl(3))


@attempt
def see_priority(_: Surroundings) -> str:
    return str(os.getpriority(os.PRIO_PROCESS, 0))


@attempt
def list_the_root_folder(_: Surroundings) -> str:
    return " ".join(path.name for path in Path("/").iterdir())


@attempt
def see_user(_: Surroundings) -> str:
    return "root" if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()) else "other"


@attempt
def see_physical_addresses(_: Surroundings) -> str:
    """Read the page map wherever it is open, for a page that is in memory."""
    MAPPED[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(MAPPED))
    frames = []
    for fd in range(64):
        try:
            entry = int.from_bytes(os.pread(fd, 8, address // 4096 * 8), "little")
        except OSError:
            continue
        if entry >> 63:  # present; other files end long before this offset
            frames.append(entry & (1 << 55) - 1)
    return f"{frames}" if any(frames) else "none"

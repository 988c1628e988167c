"""Attempts to get rights back, or to be rid of a limit."""

from __future__ import annotations

import ctypes
import os
import resource

from sandbox_service.jail import kernel
from tests.jail.attempts.attempt import LIBC, Surroundings, attempt, checked


@attempt
def become_root(_: Surroundings) -> None:
    os.setuid(0)


@attempt
def join_groups(_: Surroundings) -> None:
    os.setgroups([0])


@attempt
def regain_capabilities(_: Surroundings) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    administration = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21)
    kernel.syscall("capset", header, administration)


@attempt
def allow_core_dumps(_: Surroundings) -> None:
    checked(LIBC.setrlimit(resource.RLIMIT_CORE, (ctypes.c_uint64 * 2)(1, 1)))


@attempt
def allow_larger_files(_: Surroundings) -> None:
    unlimited = (ctypes.c_uint64 * 2)(*[(1 << 64) - 1] * 2)
    checked(LIBC.setrlimit(resource.RLIMIT_FSIZE, unlimited))


@attempt
def become_traceable(_: Surroundings) -> None:
    kernel.prctl(4, 1)


@attempt
def outlive_the_parent(_: Surroundings) -> None:
    kernel.prctl(1, 0)


@attempt
def go_first(_: Surroundings) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -1)

"""User, capabilities and the ways to get more: given up, with nothing to get them back by.

A process started as root becomes a user that nothing else on the machine belongs to.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox_service.jail import kernel
from sandbox_service.jail.wall import WallError

_OWN_ID_BASE = 2_000_000_000
"""With the process id added: a user that owns no file and no other process."""
_NOBODY = 65_534
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 23, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAP_SETPCAP = 8
_NO_ROOT_NO_KEEP_NO_AMBIENT_LOCKED = 0b1110_0011
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_HEADER = struct.Struct("=II")
_CAPABILITY_SETS = struct.Struct("=6I")


class ParentGoneError(Exception):
    """The process that this one belongs to ended before this one could be tied to it."""


@contextmanager
def put_aside() -> Iterator[None]:
    """Have no capability in effect for as long as the block lasts.

    A file that is opened in it shows no more than an ordinary user may see, for good: the page
    map then hides where in the machine's memory a page is.
    """
    permitted = capabilities()[1]
    _set_capabilities(permitted, effective=0)
    try:
        yield
    finally:
        _set_capabilities(permitted)


def leave_root() -> None:
    """Become a user of one's own, where root; raises WallError where that is not allowed.

    Capabilities stay as they are, since other walls need them; `drop` takes them.
    """
    if 0 not in (*os.getresuid(), *os.getresgid()):
        return
    try:
        kernel.prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        _become_own_user()
        _set_capabilities(capabilities()[1])
    except OSError as error:
        raise WallError(
            f"started as root, or in its group, without the right to leave: {error}"
        ) from error


def drop(parent_pid: int) -> None:
    """Drop every capability and every way to one; end with the parent, and leave no core dump.

    Raises WallError where a capability is left, ParentGoneError where the parent has ended.
    """
    forbid_new_privileges()
    try:
        _close_ways_back()
    finally:  # a kernel that lacks some of these can still take the capabilities themselves
        _set_capabilities(0)
        # Last: a change of user or capabilities undoes both.
        kernel.prctl(_PR_SET_DUMPABLE, 0)
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ParentGoneError(f"process {parent_pid} has ended")
    if any(capabilities()):
        raise WallError("the kernel left a capability")


def forbid_new_privileges() -> None:
    """Have no program that is executed get more than this process has."""
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities, a bit each."""
    sets = (ctypes.c_uint32 * 6)()
    kernel.syscall("capget", _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0), sets)
    return sets[0] | sets[3] << 32, sets[1] | sets[4] << 32, sets[2] | sets[5] << 32


def _close_ways_back() -> None:
    """Give up what a program could get capabilities from, where there is the right to."""
    permitted = capabilities()[1]
    if permitted >> _CAP_SETPCAP & 1:
        _set_capabilities(permitted)
        for capability in _known_capabilities():
            kernel.prctl(_PR_CAPBSET_DROP, capability)
        kernel.prctl(_PR_SET_SECUREBITS, _NO_ROOT_NO_KEEP_NO_AMBIENT_LOCKED)
    kernel.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def _become_own_user() -> None:
    own = _OWN_ID_BASE + os.getpid()
    try:
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A container's own users are a few thousand; this one is as a rule among them.
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _set_capabilities(permitted: int, effective: int | None = None) -> None:
    effective = permitted if effective is None else effective
    halves = [
        half & 0xFFFFFFFF
        for shift in (0, 32)
        for half in (effective >> shift, permitted >> shift, 0)
    ]
    sets = _CAPABILITY_SETS.pack(*halves)
    kernel.syscall("capset", _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0), sets)


def _known_capabilities() -> list[int]:
    known = []
    for capability in range(64):
        try:
            kernel.prctl(_PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: the kernel has no more
            break
        known.append(capability)
    return known

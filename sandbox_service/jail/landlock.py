"""Landlock: no file can be opened any more, no TCP port bound or reached, no outsider signalled.

Everything a worker needs is open before, or comes as a descriptor, so there is not one rule
that allows anything. What Landlock does not cover (stat, chmod, UDP) is seccomp's.
"""

from __future__ import annotations

import errno
import os
import struct

from sandbox_service.jail import kernel
from sandbox_service.jail.privileges import forbid_new_privileges
from sandbox_service.jail.wall import WallError

_CREATE_RULESET_VERSION = 1
_FILE_RIGHTS_SINCE = {1: 13, 2: 14, 3: 15, 5: 16}
"""Version of the interface to the number of rights that files have in it."""
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_ATTRIBUTES = struct.Struct("=QQQ")


def restrict() -> None:
    """Give up everything that this kernel's Landlock can take; the thread's own, for good.

    Raises WallError where the kernel has no Landlock.
    """
    handled = attributes(abi_version())
    ruleset = kernel.syscall("landlock_create_ruleset", handled, len(handled), 0)
    try:
        forbid_new_privileges()
        kernel.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def abi_version() -> int:
    """Return the version of the kernel's interface; raises WallError where there is none."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel was built without Landlock",
            errno.EOPNOTSUPP: "Landlock is switched off in the kernel's list of modules",
        }
        raise WallError(reasons.get(error.errno or 0, str(error))) from error


def attributes(version: int) -> bytes:
    """Return what is handled, and thereby denied, in a version of the interface."""
    rights = max(count for since, count in _FILE_RIGHTS_SINCE.items() if since <= version)
    return _ATTRIBUTES.pack(
        (1 << rights) - 1,
        _TCP_BIND_AND_CONNECT if version >= 4 else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0,
    )

"""Namespaces: a network, IPC, host name, mounts and control groups that hold nothing.

A process without the right to make them gets it from a user namespace of its own, where the
kernel allows that. Containers often do not, and then the other walls stand alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from sandbox_service.jail import kernel
from sandbox_service.jail.wall import WallError

_NEW_MOUNTS, _NEW_CONTROL_GROUPS, _NEW_HOST_NAME = 0x20000, 0x2000000, 0x4000000
_NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x8000000, 0x10000000, 0x40000000
_ALL_BUT_USER = _NEW_MOUNTS | _NEW_CONTROL_GROUPS | _NEW_HOST_NAME | _NEW_IPC | _NEW_NETWORK
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
_MNT_DETACH = 2
_MOUNT_POINT = b"/proc"
"""A folder that every system has; only in our own namespace something else is mounted on it."""


def enter() -> None:
    """Move into namespaces of one's own; raises WallError where the kernel does not allow it."""
    try:
        try:
            kernel.syscall("unshare", _ALL_BUT_USER)
        except PermissionError:
            # No id is mapped in it: the process needs none, and stays who it is outside.
            kernel.syscall("unshare", _ALL_BUT_USER | _NEW_USER)
    except OSError as error:
        raise WallError(f"the host does not allow namespaces: {error}") from error


def empty_root() -> None:
    """Make the root an empty folder; only in a mount namespace of one's own.

    Raises WallError where the host does not allow it.
    """
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    options = b"size=4k,nr_inodes=1,mode=0500"
    try:
        _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        _mount(b"none", _MOUNT_POINT, b"tmpfs", flags, options)
        os.chdir(_MOUNT_POINT)
        # The new root and the old one, stacked in one place; then the old one goes.
        kernel.syscall("pivot_root", b".\0", b".\0")
        kernel.syscall("umount2", b".\0", _MNT_DETACH)
        os.chdir("/")
    except OSError as error:
        raise WallError(f"the host does not allow an empty root: {error}") from error
    if any(Path("/").iterdir()):
        raise WallError("the root is not empty")


def _mount(
    source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None
) -> None:
    kernel.syscall("mount", source, target, kind, flags, data)

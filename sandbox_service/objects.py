"""The object store as the sandbox sees it: blobs by key, opened for a worker to read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Protocol

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class ObjectError(Exception):
    """A blob is not there, or not what it was said to be."""


class ObjectStore(Protocol):
    """Where contexts' blobs are kept."""

    def open(self, key: str, size_bytes: int) -> int:
        """Return a descriptor for reading a blob; the caller closes it.

        Raises ObjectError where there is none of this size.
        """


class FolderObjects:
    """Blobs as files under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, key: str, size_bytes: int) -> int:
        """Open a blob's file; a key never leads out of the folder."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        try:
            fd = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ObjectError(f"the blob cannot be opened: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            os.close(fd)
            raise ObjectError(f"the blob has {status.st_size} bytes, not {size_bytes}")
        return fd


def is_key(key: str) -> bool:
    """Tell whether a text has the form of a blob's key."""
    return len(key) <= 512 and _KEY.fullmatch(key) is not None

"""The object store as the sandbox sees it: blobs by key, read by descriptor, written whole."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
OWN_PREFIXES = ("checkpoints/", "evicted/", "indexes/")
"""What keys begin with of blobs that the service writes for itself: never a context."""
_PARTIAL = ".partial"
"""Folder of what is being written; no key leads into it."""


class ObjectError(Exception):
    """A blob is not there, or not what it was said to be, or cannot be written."""


class ObjectMissingError(ObjectError):
    """There is no blob of this key."""


class ObjectWriter(Protocol):
    """A blob that is being written; a context manager that drops what was not committed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def write(self, data: bytes | memoryview) -> int:
        """Append all of some data and return its size; raises ObjectError."""

    def commit(self, key: str) -> None:
        """Store the blob for good, in the place of one of the same key; raises ObjectError."""


class ObjectStore(Protocol):
    """Where blobs are kept. Its calls block."""

    def open(self, key: str, size_bytes: int | None = None) -> int:
        """Return a descriptor for reading a blob; the caller closes it.

        Raises ObjectMissingError where there is none, ObjectError where it has another size than
        the one given.
        """

    def writer(self) -> ObjectWriter:
        """Begin to write a blob whose key is known at its end; raises ObjectError."""

    def delete(self, key: str) -> None:
        """Remove a blob, if it is there; raises ObjectError."""


class FolderObjects:
    """Blobs as files under a folder, and those that are written under one of their own, if given.

    So the folder of everybody's contexts can be read-only here.
    """

    def __init__(self, root: Path, written: Path | None = None) -> None:
        self._written = written or root
        self._folders = (self._written,) if written in (None, root) else (self._written, root)

    def open(self, key: str, size_bytes: int | None = None) -> int:
        """Open a blob's file; a key never leads out of the folder."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        fd = self._opened(key)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or size_bytes not in (None, status.st_size):
            os.close(fd)
            raise ObjectError(f"the blob has {status.st_size} bytes, not {size_bytes}")
        return fd

    def writer(self) -> ObjectWriter:
        """Begin a file that gets its name when it is whole."""
        return FolderWriter(self._written)

    def delete(self, key: str) -> None:
        """Remove a blob's file."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        try:
            (self._written / key).unlink(missing_ok=True)
        except OSError as error:
            raise ObjectError(f"the blob cannot be removed: {error.strerror}") from error

    def _opened(self, key: str) -> int:
        for folder in self._folders:
            try:
                return os.open(folder / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ObjectError(f"the blob cannot be opened: {error.strerror}") from error
        raise ObjectMissingError(f"there is no blob {key}")


class FolderWriter:
    """A file that is on its way to its name: written, synced, then renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partial = root / _PARTIAL / secrets.token_hex(16)
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("xb", buffering=0)
        except OSError as error:
            raise ObjectError(f"a blob cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def write(self, data: bytes | memoryview) -> int:
        """Append all of some data."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ObjectError(f"a blob cannot be written: {error.strerror}") from error
        return len(data)

    def commit(self, key: str) -> None:
        """Sync the file, name it, and sync its folder."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        path = self._root / key
        try:
            os.fsync(self._file.fileno())
            _make_folder(path.parent)
            self._partial.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise ObjectError(f"a blob cannot be written: {error.strerror}") from error


def is_key(key: str) -> bool:
    """Tell whether a text has the form of a blob's key."""
    return len(key) <= 512 and _KEY.fullmatch(key) is not None


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they outlast a crash of the machine."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

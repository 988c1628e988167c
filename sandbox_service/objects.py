"""The object store as the sandbox sees it: blobs by key, read by descriptor, written whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
OWN_PREFIXES = ("checkpoints/", "evicted/", "indexes/")
"""What keys begin with of blobs that the service writes for itself: never a context."""
_SHARED_DEPTH = 3
"""Folders that are less deep are never removed: others may be writing into them."""
_NAMINGS_MAX = 5
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PARTIAL = ".partial"
"""Folder of what is being written; no key leads into it."""
_PARTIAL_KEPT_S = 3600.0


class ObjectError(Exception):
    """A blob is not there, or not what it was said to be, or cannot be written."""


class ObjectMissingError(ObjectError):
    """There is no blob of this key."""


class ObjectsFullError(ObjectError):
    """The disk has no room for a blob."""


class ObjectsAwayError(ObjectError):
    """The store does not answer as it should: what it has is not known just then."""


def not_written(error: OSError) -> ObjectError:
    """Return why a blob could not be written."""
    if error.errno in _FULL:
        return ObjectsFullError("the disk is full")
    return ObjectError(f"a blob cannot be written: {error.strerror}")


class FoundObject(NamedTuple):
    """A blob that a folder of keys has."""

    key: str
    stored_at: float
    """When it was written, Unix time in seconds."""


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

    def found(self, folder: str) -> Iterator[FoundObject]:
        """Yield the blobs that the service has written under a folder of keys; raises
        ObjectError."""


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

    def drop_partial(self) -> None:
        """Remove what killed processes were writing a while ago."""
        for path in (self._written / _PARTIAL).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _PARTIAL_KEPT_S:
                    path.unlink()

    def writer(self) -> ObjectWriter:
        """Begin a file that gets its name when it is whole."""
        return FolderWriter(self._written)

    def delete(self, key: str) -> None:
        """Remove a blob's file."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        path = self._written / key
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ObjectError(f"the blob cannot be removed: {error.strerror}") from error
        # A folder of one owner's goes with its last blob; those above are everybody's.
        for folder in path.parents:
            if len(folder.relative_to(self._written).parts) < _SHARED_DEPTH or not _gone(folder):
                break

    def found(self, folder: str) -> Iterator[FoundObject]:
        """Yield the files of a folder."""
        if not is_key(folder):
            raise ObjectError("the folder is not one of blobs")
        for parent, _, names in os.walk(self._written / folder):
            for path in (Path(parent) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    key = path.relative_to(self._written).as_posix()
                    yield FoundObject(key, path.stat().st_mtime)

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
            raise not_written(error) from error

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
            raise not_written(error) from error
        return len(data)

    def commit(self, key: str) -> None:
        """Sync the file, name it, and sync its folder."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        path = self._root / key
        try:
            os.fsync(self._file.fileno())
            self._name(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise not_written(error) from error

    def _name(self, path: Path) -> None:
        for left in reversed(range(_NAMINGS_MAX)):
            try:
                _make_folder(path.parent)
                self._partial.replace(path)
            except FileNotFoundError:  # with its last blob, the folder went just then
                if not left:
                    raise
            else:
                return


def is_key(key: str) -> bool:
    """Tell whether a text has the form of a blob's key."""
    return len(key) <= 512 and _KEY.fullmatch(key) is not None


def _gone(folder: Path) -> bool:
    """Remove a folder if it is empty; tell whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


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

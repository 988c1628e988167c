"""The object store: immutable blobs by key, in a folder that the sandbox reads too.

A blob appears under its key whole or not at all, and has reached the disk when it does. What is
being written can be kept over a crash and gone on with. `s3_blobs.py` has the other kind of store.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from orchestrator.errors import ObjectStoreError, ObjectStoreFullError

READ_BYTES = 1 << 20
"""Size of the pieces that a blob is read in."""
_QUICK_BYTES = 64 << 10
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PARTIAL = "partial"
_SMALL_PREFIX = "put."
_SMALL_KEPT_S = 3600.0


class BlobMissingError(Exception):
    """There is no such blob, or less of it than was asked for."""


class BlobWriter(Protocol):
    """A blob that is being written. Its methods block: call them in a thread, one at a time, but
    for `sync`, which may run beside `write`. All raise ObjectStoreError."""

    def is_quick(self, size_bytes: int) -> bool:
        """Tell whether so many bytes can be written without a wait worth a thread."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def sync(self) -> int:
        """Return how many of the first bytes outlast a crash, after making it as many as can be."""

    def suspend(self) -> int:
        """Make all that was written outlast a crash, and return how much that is."""

    def commit(self) -> None:
        """Put the blob under its key, in one step and safe on disk."""

    def close(self) -> None:
        """Let go. What is kept stays until it is deleted."""


class BlobStore(Protocol):
    """Where blobs are kept. Whatever cannot be done raises ObjectStoreError, or what is its child
    where there is no room, ObjectStoreFullError."""

    def require_room(self, size_bytes: int) -> None:
        """Raise ObjectStoreFullError where it is known that there is no room for so many bytes
        more, besides what is to stay free for others; takes microseconds."""

    def begin(self, key: str, kept_bytes: int = 0) -> BlobWriter:
        """Begin to write a blob, or go on with it after its first `kept_bytes`; blocks shortly.

        Raises BlobMissingError where less of it is there.
        """

    def read_partial(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the first bytes of a blob that is being written; blocks.

        Raises BlobMissingError where less of it is there.
        """

    async def put(self, key: str, data: bytes) -> None:
        """Store a small blob, replacing one under the same key."""

    def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield a range in pieces of at most READ_BYTES, as far as the blob has it; raises
        BlobMissingError."""

    async def delete(self, key: str) -> None:
        """Remove a blob, whole or partly written. Does nothing where there is none."""


class FolderBlobStore:
    """Blobs as files under one folder. Replicas share it."""

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        """Leave so many bytes of the disk free where uploads would fill it."""
        self._root = root
        self._reserve_bytes = reserve_bytes
        self._partial = root / _PARTIAL
        self._partial.mkdir(parents=True, exist_ok=True)

    def require_room(self, size_bytes: int) -> None:
        """Look at the disk."""
        with _errors():
            disk = os.statvfs(self._root)
        free = max(disk.f_bavail * disk.f_frsize - self._reserve_bytes, 0)
        if size_bytes > free:
            raise ObjectStoreFullError(bytes_needed=size_bytes, bytes_free=free)

    def begin(self, key: str, kept_bytes: int = 0) -> BlobWriter:
        """Begin a file in the folder of unfinished ones, or go on with what is kept of it."""
        with _errors():
            return _FileWriter(self._partial_path(key), self._root / key, kept_bytes)

    def read_partial(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the first bytes of an unfinished file."""
        with _errors(), self._open_partial(key) as file:
            while size_bytes:
                data = file.read(min(READ_BYTES, size_bytes))
                if not data:
                    raise BlobMissingError(key)
                size_bytes -= len(data)
                yield data

    def _open_partial(self, key: str) -> BinaryIO:
        try:
            return self._partial_path(key).open("rb", buffering=0)
        except FileNotFoundError:
            return (self._root / key).open("rb", buffering=0)

    async def put(self, key: str, data: bytes) -> None:
        """Write a blob in one go."""
        await asyncio.to_thread(self._put, key, data)

    async def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield a range of a blob."""
        path = self._root / key
        while size > 0:
            data = await asyncio.to_thread(_read_at, path, offset, min(size, READ_BYTES))
            if not data:
                return
            yield data
            offset += len(data)
            size -= len(data)

    async def delete(self, key: str) -> None:
        """Remove a blob's file."""
        await asyncio.to_thread(self._delete, key)

    def drop_partial(self) -> None:
        """Remove what killed processes left of small blobs; uploads are kept."""
        for path in self._partial.glob(f"{_SMALL_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _SMALL_KEPT_S:
                    path.unlink()

    def _put(self, key: str, data: bytes) -> None:
        partial = self._partial / f"{_SMALL_PREFIX}{secrets.token_hex(16)}"
        with _errors():
            writer = _FileWriter(partial, self._root / key, 0)
            try:
                writer.write(data)
                writer.commit()
            finally:
                writer.close()
                partial.unlink(missing_ok=True)

    def _delete(self, key: str) -> None:
        with _errors():
            self._partial_path(key).unlink(missing_ok=True)
            path = self._root / key
            try:
                path.unlink()
            except FileNotFoundError:
                return
            _sync_folder(path.parent)

    def _partial_path(self, key: str) -> Path:
        return self._partial / key.replace("/", ".")


class _FileWriter:
    """A file on its way to its name. Others that would write it are kept out by a lock."""

    def __init__(self, partial: Path, target: Path, kept_bytes: int) -> None:
        self._partial = partial
        self._target = target
        self._size = kept_bytes
        self._is_cut = self._is_named = False
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            self._fd = os.open(partial, flags | (0 if kept_bytes else os.O_CREAT), 0o666)
        except FileNotFoundError:
            # A process died between naming it and telling so: nobody has read it yet.
            self._fd = os.open(target, flags)
            self._is_named = True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._fd).st_size < kept_bytes:
                raise BlobMissingError(target.name)
        except BaseException:
            self.close()
            raise

    def is_quick(self, size_bytes: int) -> bool:
        return size_bytes <= _QUICK_BYTES

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with _errors():
            self._cut()
            while view:
                written = os.pwrite(self._fd, view, self._size)
                self._size += written
                view = view[written:]

    def sync(self) -> int:
        size = self._size
        with _errors():
            self._cut()
            os.fdatasync(self._fd)
            # What is written once and read later has no business in memory: pages that are used
            # again, rather than ever new ones, made a large upload four times as fast.
            os.posix_fadvise(self._fd, 0, size, os.POSIX_FADV_DONTNEED)
        return size

    def suspend(self) -> int:
        return self.sync()

    def commit(self) -> None:
        with _errors():
            self._cut()
            os.fsync(self._fd)
            _make_folder(self._target.parent)
            self._partial.replace(self._target)
            _sync_folder(self._target.parent)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cut(self) -> None:
        """Make a file of what is kept, once it is written to: who only looks changes nothing."""
        if self._is_named:
            self._target.replace(self._partial)
            self._is_named = False
        if not self._is_cut:
            os.ftruncate(self._fd, self._size)
            self._is_cut = True


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissingError(str(error.filename)) from error
    except OSError as error:
        if error.errno in _FULL:
            raise ObjectStoreFullError from error
        raise ObjectStoreError(error.strerror or str(error)) from error


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they outlast a crash of the machine."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with _errors(), path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(size)

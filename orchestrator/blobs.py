"""The object store: immutable blobs by key, in a folder that the sandbox reads too.

A blob appears under its key whole or not at all, and has reached the disk when it does. Another
kind of store implements BlobStore.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol

READ_BYTES = 1 << 20
"""Size of the pieces that a blob is read in."""


class BlobWriter(Protocol):
    """A blob that is being written and has no key yet. Its methods block: call them in a thread."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def read_back(self) -> bytes:
        """Return all that was written."""

    def commit(self, key: str) -> None:
        """Put the blob under its key, in one step and safe on disk."""

    def abort(self) -> None:
        """Drop what was written. Does nothing after `commit`."""


class BlobStore(Protocol):
    """Where blobs are kept."""

    def create(self) -> BlobWriter:
        """Begin a blob; blocks shortly."""

    async def put(self, key: str, data: bytes) -> None:
        """Store a small blob, replacing one under the same key."""

    def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield a range in pieces of at most READ_BYTES; raises FileNotFoundError."""


class FolderBlobStore:
    """Blobs as files under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partial = root / "partial"
        self._partial.mkdir(parents=True, exist_ok=True)

    def create(self) -> BlobWriter:
        """Begin a blob in the folder of unfinished ones."""
        return _FileWriter(self._root, self._partial / secrets.token_hex(16))

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

    def drop_partial(self) -> None:
        """Remove what unfinished uploads of an earlier process left behind."""
        for path in self._partial.iterdir():
            path.unlink(missing_ok=True)

    def _put(self, key: str, data: bytes) -> None:
        writer = self.create()
        try:
            writer.write(data)
            writer.commit(key)
        finally:
            writer.abort()


class _FileWriter:
    def __init__(self, root: Path, path: Path) -> None:
        self._root = root
        self._path = path
        self._file: BinaryIO = path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def read_back(self) -> bytes:
        return self._path.read_bytes()

    def commit(self, key: str) -> None:
        target = self._root / key
        os.fsync(self._file.fileno())
        self._file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)
        _sync_folder(target.parent)

    def abort(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)

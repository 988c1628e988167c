"""The object store in an S3-compatible service: blobs as parts, see `common/parted_objects.py`.

A blob has its key from its first part on. It counts as whole once the database says so, which is
what readers go by.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from common.parted_objects import PART_BYTES, PartedObjects, PartMissingError, RemoteStoreError
from orchestrator.blobs import READ_BYTES, BlobMissingError, BlobWriter
from orchestrator.errors import ObjectStoreError

_QUICK_BYTES = 64 << 10
_THREADS_MAX = 32
Done = TypeVar("Done")


class S3BlobStore:
    """Blobs as parts."""

    def __init__(self, objects: PartedObjects) -> None:
        self._objects = objects
        # Of its own: a server that never answers must not hold the threads that all others share.
        self._threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="s3")

    def require_room(self, size_bytes: int) -> None:
        """Do nothing: a bucket does not tell."""

    def begin(self, key: str, kept_bytes: int = 0) -> BlobWriter:
        """Begin a blob, or go on behind what is kept of it."""
        number, tail_bytes = divmod(kept_bytes, PART_BYTES)
        tail = b""
        with _errors(key):
            if kept_bytes:
                last = self._objects.part(key, number if tail_bytes else number - 1)
                if len(last) < (tail_bytes or PART_BYTES):
                    raise BlobMissingError(key)
                tail = last[:tail_bytes]
        return _PartWriter(self._objects, key, number, tail)

    def read_partial(self, key: str, size_bytes: int) -> Iterator[bytes]:
        """Yield what is kept, part by part."""
        with _errors(key):
            for number in range(-(-size_bytes // PART_BYTES)):
                part = self._objects.part(key, number)
                wanted = min(PART_BYTES, size_bytes - number * PART_BYTES)
                if len(part) < wanted:
                    raise BlobMissingError(key)
                yield part[:wanted]

    async def put(self, key: str, data: bytes) -> None:
        """Store a small blob."""
        await self._in_thread(lambda: self._put(key, data))

    async def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield a range of a blob."""
        while size > 0:
            data = await self._range_of(key, offset, min(size, READ_BYTES))
            if not data:
                return
            yield data
            offset += len(data)
            size -= len(data)

    async def delete(self, key: str) -> None:
        """Remove a blob's parts."""
        await self._in_thread(lambda: self._delete(key))

    async def _range_of(self, key: str, offset: int, size: int) -> bytes:
        return await self._in_thread(lambda: self._range(key, offset, size))

    async def _in_thread(self, work: Callable[[], Done]) -> Done:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _put(self, key: str, data: bytes) -> None:
        writer = _PartWriter(self._objects, key, 0, b"")
        writer.write(data)
        writer.commit()

    def _range(self, key: str, offset: int, size: int) -> bytes:
        with _errors(key):
            try:
                return self._objects.range(key, offset, size)
            except PartMissingError:
                if self._objects.size(key) is None:
                    raise
                return b""  # behind its end

    def _delete(self, key: str) -> None:
        with _errors(key):
            self._objects.delete(key)


class _PartWriter:
    """A blob whose last part is in memory."""

    def __init__(self, objects: PartedObjects, key: str, number: int, tail: bytes) -> None:
        self._objects = objects
        self._key = key
        self._number = number
        self._tail = bytearray(tail)

    def is_quick(self, size_bytes: int) -> bool:
        return size_bytes <= _QUICK_BYTES and len(self._tail) + size_bytes < PART_BYTES

    def write(self, data: bytes) -> None:
        self._tail += data
        while len(self._tail) >= PART_BYTES:
            self._put(self._tail[:PART_BYTES])
            del self._tail[:PART_BYTES]
            self._number += 1

    def sync(self) -> int:
        return self._number * PART_BYTES

    def suspend(self) -> int:
        if self._tail:
            self._put(self._tail)
        return self._number * PART_BYTES + len(self._tail)

    def commit(self) -> None:
        if self._tail or not self._number:
            self._put(self._tail)

    def close(self) -> None:
        self._tail = bytearray()

    def _put(self, data: bytearray) -> None:
        with _errors(self._key):
            # A copy: a view would outlive a failure, in its traceback, and forbid to append.
            self._objects.put(self._key, self._number, bytes(data))


@contextlib.contextmanager
def _errors(key: str) -> Iterator[None]:
    try:
        yield
    except PartMissingError:
        raise BlobMissingError(key) from None
    except RemoteStoreError as error:
        raise ObjectStoreError(str(error)) from error

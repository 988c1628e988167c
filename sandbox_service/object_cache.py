"""The object store in an S3-compatible service, read through a folder of this host.

A blob is fetched whole, once, under its own key, which never means other bytes. What is open is
locked, so that nothing takes it away; the rest goes by age and when room is needed. The lock goes
with the descriptor, also to a worker and after the death of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from common.background import end_tasks
from common.parted_objects import PART_BYTES, PartedObjects, PartMissingError, RemoteStoreError
from sandbox_service.objects import (
    FoundObject,
    ObjectError,
    ObjectMissingError,
    ObjectsAwayError,
    ObjectStore,
    ObjectWriter,
    is_key,
    not_written,
)

_log = logging.getLogger(__name__)
_PARTIAL = ".partial"
_SWEEP_S = 60.0
_PARTIAL_KEPT_S = 3600.0


class CachedObjects:
    """Blobs of a remote store."""

    def __init__(
        self, remote: PartedObjects, folder: Path, *, bytes_max: int, kept_s: float
    ) -> None:
        """Keep up to `bytes_max` of blobs in a folder, each for `kept_s` after its last use."""
        self._remote = remote
        self._folder = folder
        self._partial = folder / _PARTIAL
        self._partial.mkdir(parents=True, exist_ok=True)
        self._bytes_max = bytes_max
        self._kept_s = kept_s
        self._fetches = _Fetches()

    def open(self, key: str, size_bytes: int | None = None) -> int:
        """Open a blob's copy, fetching it where there is none."""
        path = self._path(key)
        with self._fetches.of(key):
            fd = _opened(path)
            if fd is None:
                self._fetch(key, path)
                fd = _opened(path)
            if fd is None:
                raise ObjectError("the blob's copy was taken away just then")
        status = os.fstat(fd)
        if size_bytes not in (None, status.st_size):
            os.close(fd)
            raise ObjectError(f"the blob has {status.st_size} bytes, not {size_bytes}")
        return fd

    def writer(self) -> ObjectWriter:
        """Begin a file that is sent when it is whole."""
        return _CachedWriter(self._remote, self._folder, self._partial_path())

    def delete(self, key: str) -> None:
        """Remove a blob there, and its copy here."""
        path = self._path(key)
        with _errors():
            self._remote.delete(key)
            path.unlink(missing_ok=True)

    def found(self, folder: str) -> Iterator[FoundObject]:
        """Yield the blobs there; copies are of no account."""
        if not is_key(folder):
            raise ObjectError("the folder is not one of blobs")
        with _errors():
            for key, stored_at in self._remote.keys(folder):
                yield FoundObject(key, stored_at)

    def sweep(self, room_bytes: int = 0) -> None:
        """Remove copies that nobody has used for long, and as many as give room for so many
        bytes; none that is open."""
        copies = sorted(self._copies())
        total = sum(copy.size_bytes for copy in copies) + room_bytes
        before = time.time() - self._kept_s
        for copy in copies:
            if copy.used_at >= before and total <= self._bytes_max:
                break
            if _is_removed(copy.path):
                total -= copy.size_bytes
        for path in self._partial.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _PARTIAL_KEPT_S:
                    path.unlink()

    @contextlib.asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Sweep now and then while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self._sweep_for_ever())
            yield
            await end_tasks(task)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except OSError as error:
                _log.warning("copies of blobs were not removed: %s", error)
            await asyncio.sleep(_SWEEP_S)

    def _fetch(self, key: str, path: Path) -> None:
        with _errors():
            size_bytes = self._remote.size(key)
            if size_bytes is None:
                raise ObjectMissingError(f"there is no blob {key}")
            self.sweep(size_bytes)
            partial = self._partial_path()
            try:
                with partial.open("xb", buffering=0) as file:
                    for number in range(max(-(-size_bytes // PART_BYTES), 1)):
                        _write_all(file.fileno(), self._remote.part(key, number))
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _copies(self) -> Iterator[_Copy]:
        for parent, _, names in os.walk(self._folder):
            if Path(parent) == self._partial:
                continue
            for name in names:
                path = Path(parent) / name
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield _Copy(status.st_mtime, status.st_size, path)

    def _partial_path(self) -> Path:
        return self._partial / secrets.token_hex(16)

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        return self._folder / key


class SplitObjects:
    """Contexts from one store; what the service writes for itself, in another one."""

    def __init__(self, contexts: ObjectStore, own: ObjectStore) -> None:
        self._contexts = contexts
        self._own = own

    def open(self, key: str, size_bytes: int | None = None) -> int:
        """Open a blob of our own, or else of a context or its index."""
        try:
            return self._own.open(key, size_bytes)
        except ObjectMissingError:
            return self._contexts.open(key, size_bytes)

    def writer(self) -> ObjectWriter:
        """Begin a blob of our own."""
        return self._own.writer()

    def delete(self, key: str) -> None:
        """Remove a blob of our own."""
        self._own.delete(key)

    def found(self, folder: str) -> Iterator[FoundObject]:
        """Yield blobs of our own."""
        yield from self._own.found(folder)


class _Copy(NamedTuple):
    """A blob's copy; the one that was used first comes first."""

    used_at: float
    size_bytes: int
    path: Path


class _Fetches:
    """Lets one thread at a time look for a blob, so that none is fetched twice at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def of(self, key: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._of.get(key, (threading.Lock(), 0))
            self._of[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._of[key]
                if users == 1:
                    del self._of[key]
                else:
                    self._of[key] = lock, users - 1


class _CachedWriter:
    """A file that is on its way to the store, and stays here as a copy."""

    def __init__(self, remote: PartedObjects, folder: Path, partial: Path) -> None:
        self._remote = remote
        self._folder = folder
        self._partial = partial
        with _errors():
            self._file = partial.open("x+b", buffering=0)

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
        with _errors():
            _write_all(self._file.fileno(), data)
        return len(data)

    def commit(self, key: str) -> None:
        """Send the file, its first part last: without that one a blob is not there."""
        if not is_key(key):
            raise ObjectError("the key is not one of a blob")
        fd = self._file.fileno()
        path = self._folder / key
        with _errors():
            parts = max(-(-os.fstat(fd).st_size // PART_BYTES), 1)
            for number in reversed(range(parts)):
                self._remote.put(key, number, os.pread(fd, PART_BYTES, number * PART_BYTES))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.replace(path)


def _opened(path: Path) -> int | None:
    """Open a copy and lock it against removal; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ObjectError(f"the blob cannot be opened: {error.strerror}") from error
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.utime(fd)
    return fd


def _is_removed(path: Path) -> bool:
    """Remove a copy unless it is open; tell whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _write_all(fd: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except PartMissingError as error:
        raise ObjectError("the blob is not whole") from error
    except RemoteStoreError as error:
        _log.warning("the object store does not answer as it should: %s", error)
        raise ObjectsAwayError("the object store does not answer as it should") from error
    except OSError as error:
        raise not_written(error) from error

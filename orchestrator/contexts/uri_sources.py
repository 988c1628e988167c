"""What the server reads by itself to make a context: files in folders, and objects in buckets, that
its configuration names. Nothing else: a URI comes from a client.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from common.errors import InvalidFieldError, NotFoundError, PermissionDeniedError
from orchestrator.errors import ObjectStoreError

URI_CHARACTERS_MAX = 2_048
_PIECE_BYTES = 1 << 20


class UriSource(Protocol):
    """A place to read."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes in pieces of at most a MiB; raises NotFoundError, PermissionDeniedError
        or ObjectStoreError."""


class UriSources:
    """The places that may be read."""

    def __init__(self, folders: Sequence[Path], buckets: Mapping[str, S3Store]) -> None:
        """Allow files in folders, and folders in them, and objects in buckets, for every tenant."""
        self._folders = [folder.resolve() for folder in folders]
        self._buckets = buckets

    def source(self, uri: str) -> UriSource:
        """Return what a URI names, unread; raises InvalidFieldError or PermissionDeniedError."""
        if not 1 <= len(uri) <= URI_CHARACTERS_MAX:
            raise InvalidFieldError("uri", f"must have 1 to {URI_CHARACTERS_MAX} characters")
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise InvalidFieldError("uri", "is no URI") from None
        if parts.query or parts.fragment:
            raise InvalidFieldError("uri", "must have neither query nor fragment")
        path = unquote(parts.path)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
                raise InvalidFieldError("uri", "must be file:/// and an absolute path")
            if not self._folders:
                raise PermissionDeniedError("uri", "this server reads no files")
            return _File(uri, path, self._folders)
        if parts.scheme == "s3":
            if not parts.netloc or not path.strip("/"):
                raise InvalidFieldError("uri", "must be s3:// with a bucket and a key")
            if parts.netloc not in self._buckets:
                raise PermissionDeniedError("uri", "the URI is in no bucket that this server reads")
            return _Object(uri, self._buckets[parts.netloc], path.removeprefix("/"))
        raise InvalidFieldError("uri", "must begin with file:// or s3://")


class _File:
    def __init__(self, uri: str, path: str, folders: Sequence[Path]) -> None:
        self._uri = uri
        self._path = path
        self._folders = folders

    async def pieces(self) -> AsyncIterator[bytes]:
        fd = await asyncio.to_thread(self._opened)
        try:
            while data := await asyncio.to_thread(os.read, fd, _PIECE_BYTES):
                yield data
        finally:
            os.close(fd)

    def _opened(self) -> int:
        # A path outside is refused before it is looked at: nobody is to learn what is there.
        if not self._is_inside(os.path.normpath(self._path)):
            raise _outside()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise NotFoundError(self._uri) from None
        # What is open is judged, not its name, which may lead elsewhere by then.
        is_inside = self._is_inside(Path(f"/proc/self/fd/{fd}").readlink())
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        if is_inside and is_file:
            return fd
        os.close(fd)
        raise NotFoundError(self._uri) if is_inside else _outside()

    def _is_inside(self, path: str | Path) -> bool:
        return any(Path(path).is_relative_to(folder) for folder in self._folders)


class _Object:
    def __init__(self, uri: str, bucket: S3Store, key: str) -> None:
        self._uri = uri
        self._bucket = bucket
        self._key = key

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            found = await obstore.get_async(self._bucket, self._key)
            async for data in found.stream(min_chunk_size=_PIECE_BYTES):
                for start in range(0, len(data), _PIECE_BYTES):
                    yield bytes(data[start : start + _PIECE_BYTES])
        except FileNotFoundError:
            raise NotFoundError(self._uri) from None
        except (BaseError, OSError) as error:
            raise ObjectStoreError(str(error)) from error


def _outside() -> PermissionDeniedError:
    return PermissionDeniedError("uri", "the URI is outside of the folders that this server reads")

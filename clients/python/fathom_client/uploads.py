"""Sending local files as one context, in chunks of 1 MiB, over as many connections as it takes.

What to send is decided in `inputs.py`; hashing and storing is the server's part. The announced
size is what was read when the files were listed, so a file that shrinks or grows is noticed.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from fathom.orchestrator.v1 import context_pb2, context_service_pb2, context_service_pb2_grpc

from fathom_client.access import Access
from fathom_client.archives import Archive
from fathom_client.channel import open_blocking_channel, open_channel
from fathom_client.directory_walk import Identity, identity_of, open_named
from fathom_client.errors import (
    DeadlineExceededError,
    FathomError,
    UnavailableError,
    from_rpc_error,
)

CHUNK_BYTES = 1024 * 1024
_TIMEOUT_FLOOR_S = 60.0
_BYTES_PER_S_MIN = 1_000_000
_WAIT_MAX_S = 5.0


class InputChangedError(FathomError):
    """A file was not the same size when it was sent as when it was listed."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One text to send: a file on disk, or bytes at hand."""

    name: str
    """Name of the document; relative, with forward slashes."""
    size_bytes: int
    """Size when it was listed."""
    path: Path | None = None
    """Where to read it; None where `data` holds it."""
    data: bytes = b""
    """The bytes themselves, where there is no `path`."""
    archive: Archive | None = None
    """The archive at `path` that it is in, if it is in one, and"""
    member: int = 0
    """its number there."""
    identity: Identity | None = None
    """Which file was at `path` when it was listed; None for a member of an archive."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What one context is made of."""

    kind: context_pb2.Context.Kind.ValueType
    """One text, named documents or one JSON value."""
    files: tuple[InputFile, ...]
    """Exactly one unless the kind is documents."""
    title: str = ""
    """The uploader's words for it, at most 256 characters."""
    ttl_s: float | None = None
    """How long the context lives; None for the server's own time, which may be for ever."""

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)


async def upload(
    address: str,
    source: Upload,
    *,
    access: Access | None = None,
    on_progress: Callable[[int], None] | None = None,
    patience_s: float = 60.0,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> context_service_pb2.UploadContextResponse:
    """Send the files and return the stored context; `on_progress` gets the bytes sent so far.

    A connection that breaks or falls silent is made again, and the upload goes on with what the
    server has kept, until it has got no further for `patience_s`. So it does where the server asks
    for patience. Raises InputChangedError, OSError for a file that cannot be read, ArchiveError or
    a CallError.
    """
    sender = _Sender(address, access or Access(), source, on_progress or _ignore)
    waits, furthest = 0, -1
    given_up_at = time.monotonic() + patience_s
    kept = context_service_pb2.GetUploadResponse()
    while True:
        try:
            kept = await sender.kept() if waits else kept
            if kept.HasField("context"):
                return context_service_pb2.UploadContextResponse(context=kept.context)
            if kept.bytes_kept > furthest:
                waits, furthest = 0, kept.bytes_kept
                given_up_at = time.monotonic() + patience_s
            return await sender.send(kept)
        except (UnavailableError, DeadlineExceededError) as error:
            wait_s = max(min(0.1 * 2 ** min(waits, 8), _WAIT_MAX_S), error.retry_after_s or 0.0)
            is_there = sender.has_begun or error.retry_after_s is not None
            if not is_there or time.monotonic() + wait_s > given_up_at:
                raise
        waits += 1
        await pause(wait_s)


class _Sender:
    """Sends one upload, from any place on."""

    def __init__(
        self, address: str, access: Access, source: Upload, on_progress: Callable[[int], None]
    ) -> None:
        self._address = address
        self._access = access
        self._source = source
        self._on_progress = on_progress
        self._id = str(uuid.uuid4())
        self.has_begun = False
        """Whether anything was ever sent: a server that is not there is told at once."""

    async def kept(self) -> context_service_pb2.GetUploadResponse:
        """Return what the server has of it, nothing where it knows nothing of it."""
        request = context_service_pb2.GetUploadRequest(upload_id=self._id)
        async with open_channel(self._address, self._access) as channel:
            stub: context_service_pb2_grpc.ContextServiceAsyncStub = (
                context_service_pb2_grpc.ContextServiceStub(channel)
            )
            try:
                return await stub.GetUpload(request, timeout=_TIMEOUT_FLOOR_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return context_service_pb2.GetUploadResponse()
                raise from_rpc_error(error) from error

    async def send(
        self, kept: context_service_pb2.GetUploadResponse
    ) -> context_service_pb2.UploadContextResponse:
        """Send all but what is kept."""
        # Not grpc.aio: its write fails with INTERNAL where the server has refused the upload, and
        # the server's own status, which says why, is lost.
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        messages = _Messages(
            self._source,
            self._id,
            kept,
            lambda sent: loop.call_soon_threadsafe(self._sent, sent),
        )
        timeout_s = max(_TIMEOUT_FLOOR_S, self._source.size_bytes / _BYTES_PER_S_MIN)

        def wake(_: object) -> None:
            loop.call_soon_threadsafe(ended.set)

        with open_blocking_channel(self._address, self._access) as channel:
            stub = context_service_pb2_grpc.ContextServiceStub(channel)
            call = stub.UploadContext.future(
                iter(messages), timeout=timeout_s, metadata=self._access.metadata()
            )
            call.add_done_callback(wake)
            try:
                await ended.wait()
            finally:
                call.cancel()
            if messages.failure is not None:
                raise messages.failure
            error = call.exception()
            if isinstance(error, grpc.Call):
                raise from_rpc_error(error)
            return call.result()

    def _sent(self, size_bytes: int) -> None:
        self.has_begun = True
        self._on_progress(size_bytes)


class _Messages:
    """The messages of one stream, made in the thread that sends them.

    A file that fails ends the messages early: the server then misses bytes that were announced
    and stores nothing.
    """

    def __init__(
        self,
        source: Upload,
        upload_id: str,
        kept: context_service_pb2.GetUploadResponse,
        on_progress: Callable[[int], object],
    ) -> None:
        self._source = source
        self._upload_id = upload_id
        self._kept = kept
        self._on_progress = on_progress
        self.failure: OSError | FathomError | None = None

    def __iter__(self) -> Iterator[context_service_pb2.UploadContextRequest]:
        try:
            yield from self._messages()
        except (OSError, FathomError) as error:
            self.failure = error
        finally:
            for file in self._source.files:
                if file.archive is not None:
                    file.archive.close()

    def _messages(self) -> Iterator[context_service_pb2.UploadContextRequest]:
        source = self._source
        start = context_service_pb2.UploadStart(
            kind=source.kind,
            title=source.title,
            size_bytes=source.size_bytes,
            upload_id=self._upload_id,
        )
        if source.ttl_s is not None:
            start.ttl.FromNanoseconds(round(source.ttl_s * 1e9))
        yield context_service_pb2.UploadContextRequest(start=start)
        offset_bytes = 0
        for number, file in enumerate(source.files):
            is_document = source.kind == context_pb2.Context.KIND_DOCUMENTS
            if is_document and number >= self._kept.documents_kept:
                yield context_service_pb2.UploadContextRequest(
                    document=context_service_pb2.DocumentStart(name=file.name)
                )
            kept_bytes = min(max(self._kept.bytes_kept - offset_bytes, 0), file.size_bytes)
            offset_bytes += kept_bytes
            for data in _rest(file, kept_bytes):
                yield context_service_pb2.UploadContextRequest(
                    chunk=context_service_pb2.UploadChunk(offset_bytes=offset_bytes, data=data)
                )
                offset_bytes += len(data)
                self._on_progress(offset_bytes)


def _rest(file: InputFile, kept_bytes: int) -> Iterator[bytes]:
    """Yield a file's bytes but for the first ones, which the server has."""
    if file.path is None:
        for start in range(kept_bytes, len(file.data), CHUNK_BYTES):
            yield file.data[start : start + CHUNK_BYTES]
        return
    read_bytes = kept_bytes
    for data in _member(file, kept_bytes) if file.archive else _read(file, file.path, kept_bytes):
        read_bytes += len(data)
        if read_bytes > file.size_bytes:
            break
        yield data
    if read_bytes != file.size_bytes:
        raise InputChangedError(
            f"{file.path} changed while it was being sent: {file.size_bytes:,} bytes were"
            f" announced, {'more' if read_bytes > file.size_bytes else f'{read_bytes:,}'} were read"
        )


def _read(file: InputFile, path: Path, kept_bytes: int) -> Iterator[bytes]:
    with open_named(path) as stream:
        if file.identity not in (None, identity_of(os.fstat(stream.fileno()))):
            raise InputChangedError(f"{path} is another file than the one that was to be sent")
        stream.seek(kept_bytes)
        while data := stream.read(CHUNK_BYTES):
            yield data


def _member(file: InputFile, kept_bytes: int) -> Iterator[bytes]:
    assert file.archive is not None
    for data in file.archive.pieces(file.member, CHUNK_BYTES):
        if kept_bytes < len(data):
            yield data[kept_bytes:]
        kept_bytes = max(kept_bytes - len(data), 0)


def _ignore(_: int) -> None:
    """Take no notice of progress."""

"""Sending local files as one context, in chunks of 1 MiB.

What to send is decided in `inputs.py`; hashing and storing is the server's part. The announced
size is what was read when the files were listed, so a file that shrinks or grows is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from fathom.orchestrator.v1 import context_pb2, context_service_pb2, context_service_pb2_grpc

from fathom_client.channel import open_blocking_channel
from fathom_client.errors import FathomError, from_rpc_error

CHUNK_BYTES = 1024 * 1024
_TIMEOUT_FLOOR_S = 60.0
_BYTES_PER_S_MIN = 1_000_000


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


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What one context is made of."""

    kind: context_pb2.Context.Kind.ValueType
    """One text, named documents or one JSON value."""
    files: tuple[InputFile, ...]
    """Exactly one unless the kind is documents."""
    title: str = ""
    """The uploader's words for it, at most 256 characters."""

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)


async def upload(
    address: str,
    source: Upload,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> context_service_pb2.UploadContextResponse:
    """Send the files and return the stored context; `on_progress` gets the bytes sent so far.

    Raises InputChangedError, OSError for a file that cannot be read, or a CallError.
    """
    # Not grpc.aio: its write fails with INTERNAL where the server has refused the upload, and the
    # server's own status, which says why, is lost.
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    sending = _Sending(source, lambda sent: loop.call_soon_threadsafe(on_progress or _ignore, sent))
    timeout_s = max(_TIMEOUT_FLOOR_S, source.size_bytes / _BYTES_PER_S_MIN)

    def wake(_: object) -> None:
        loop.call_soon_threadsafe(ended.set)

    with open_blocking_channel(address) as channel:
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        call = stub.UploadContext.future(iter(sending), timeout=timeout_s)
        call.add_done_callback(wake)
        try:
            await ended.wait()
        finally:
            call.cancel()
        if sending.failure is not None:
            raise sending.failure
        error = call.exception()
        if isinstance(error, grpc.Call):
            raise from_rpc_error(error)
        return call.result()


class _Sending:
    """The messages of one upload, made in the thread that sends them.

    A file that fails ends the messages early: the server then misses bytes that were announced
    and stores nothing.
    """

    def __init__(self, source: Upload, on_progress: Callable[[int], object]) -> None:
        self._source = source
        self._on_progress = on_progress
        self.failure: OSError | InputChangedError | None = None

    def __iter__(self) -> Iterator[context_service_pb2.UploadContextRequest]:
        try:
            yield from self._messages()
        except (OSError, InputChangedError) as error:
            self.failure = error

    def _messages(self) -> Iterator[context_service_pb2.UploadContextRequest]:
        source, offset_bytes = self._source, 0
        yield context_service_pb2.UploadContextRequest(
            start=context_service_pb2.UploadStart(
                kind=source.kind, title=source.title, size_bytes=source.size_bytes
            )
        )
        for file in source.files:
            if source.kind == context_pb2.Context.KIND_DOCUMENTS:
                yield context_service_pb2.UploadContextRequest(
                    document=context_service_pb2.DocumentStart(name=file.name)
                )
            for data in _pieces(file):
                yield context_service_pb2.UploadContextRequest(
                    chunk=context_service_pb2.UploadChunk(offset_bytes=offset_bytes, data=data)
                )
                offset_bytes += len(data)
                self._on_progress(offset_bytes)


def _pieces(file: InputFile) -> Iterator[bytes]:
    if file.path is None:
        for start in range(0, len(file.data), CHUNK_BYTES):
            yield file.data[start : start + CHUNK_BYTES]
        return
    read_bytes = 0
    with file.path.open("rb") as stream:
        while data := stream.read(CHUNK_BYTES):
            read_bytes += len(data)
            if read_bytes > file.size_bytes:
                break
            yield data
    if read_bytes != file.size_bytes:
        raise InputChangedError(
            f"{file.path} changed while it was being sent: {file.size_bytes:,} bytes were"
            f" announced, {'more' if read_bytes > file.size_bytes else f'{read_bytes:,}'} were read"
        )


def _ignore(_: int) -> None:
    """Take no notice of progress."""

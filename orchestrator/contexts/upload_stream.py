"""One stream of an upload: what it brings is counted as stored, written and measured; when it
breaks, what came is kept or dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

from common.errors import ServiceError
from orchestrator.blobs import BlobMissingError, BlobStore, BlobWriter
from orchestrator.contexts.errors import StorageQuotaError, UploadSupersededError
from orchestrator.contexts.removal import Removal, index_key
from orchestrator.contexts.stored_context import ContextKind, StoredContext
from orchestrator.contexts.upload import Upload
from orchestrator.contexts.upload_store import UploadRecord, UploadStore
from orchestrator.contexts.upload_threads import UploadThreads
from orchestrator.errors import ObjectStoreError, ObjectStoreFullError

_log = logging.getLogger(__name__)
_KEEP_BYTES = 128 << 20
"""Bytes that a killed process loses of a named upload, about, and"""
_KEEP_DOCUMENTS = 2_000
"""documents."""
_RESERVE_BYTES = 256 << 20
"""How much is counted as stored at a time, of an upload that did not announce its size, and"""
_UNCOUNTED_BYTES = 4 << 20
"""how much before that: small uploads are counted when they end."""
_ROOM_BYTES = 8 << 20
"""How much is written between two looks at the room that the disk has."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class UploadName:
    """Which upload it is."""

    tenant: str
    """Whose."""
    upload_id: str
    """A UUID, of the client's or made for this stream alone."""
    is_given: bool = dataclasses.field(compare=False)
    """Whether it is the client's: then another stream can go on with the upload."""


class UploadStream:
    """A stream of an upload; `begin` it first, and `close` it, whatever happens."""

    def __init__(
        self,
        store: UploadStore,
        blobs: BlobStore,
        removal: Removal,
        threads: UploadThreads,
        upload: Upload,
        name: UploadName,
    ) -> None:
        """Take an `upload` that nothing has come of; it is closed here."""
        self._store = store
        self._blobs = blobs
        self._removal = removal
        self._threads = threads
        self._upload = upload
        self._plan = upload.plan
        self._name = name
        self._lock = asyncio.Lock()
        self._opened: tuple[UploadRecord, BlobWriter] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._kept_bytes = self._kept_documents = 0
        self._room_seen_at = -_ROOM_BYTES
        self._is_over = False
        self._is_kept = name.is_given

    async def begin(self, blob_key: str) -> str:
        """Begin the upload, or go on with what is kept of it; return the id of its context where
        it has ended before.

        Raises RequestIdReusedError, StorageQuotaError, UploadsTooManyError, ObjectStoreError or
        UploadSupersededError.
        """
        async with self._lock:
            if self._is_over:
                raise UploadSupersededError(self._name.upload_id)
            record = await self._store.begin(
                self._name.tenant, self._name.upload_id, blob_key, self._plan
            )
            if record.context_id is not None:
                self._is_over = True
                return record.context_id
            try:
                writer = await self._threads.begin_blob(
                    self._blobs, record.blob_key, record.kept_bytes
                )
            except BlobMissingError:
                await self._store.restart(record)
                writer = await self._threads.begin_blob(self._blobs, record.blob_key)
                self._opened = record, writer
            else:
                self._opened = record, writer
                await self._take_again(record)
            with self._giving_up_where_full():
                missing = (self._plan.size_bytes or 0) - self._upload.size_bytes
                self._blobs.require_room(max(missing, 0))
        return ""

    async def document(self, name: str, metadata: Mapping[str, str]) -> None:
        """Begin a document; raises what Upload.document does, or UploadSupersededError."""
        async with self._lock:
            self._live()
            self._upload.document(name, metadata)

    async def chunk(self, offset: int, data: bytes) -> None:
        """Take the next bytes.

        Raises InvalidFieldError, LimitAboveCeilingError, StorageQuotaError, ObjectStoreError or
        UploadSupersededError.
        """
        async with self._lock:
            _, writer = self._live()
            self._upload.check_chunk(offset, len(data))
            with self._giving_up_where_full():
                self._require_room(len(data))
                await self._count(len(data))
                if writer.is_quick(len(data)) and self._upload.is_quick(len(data)):
                    self._write(writer, data)
                else:
                    await self._measure(self._write, writer, data)
                self._keep_now_and_then()

    async def finish(self) -> tuple[StoredContext, bool]:
        """Store the context; return it, and whether it was there before.

        Raises InvalidFieldError or DigestMismatchError, which end the upload, StorageQuotaError,
        ObjectStoreError or UploadSupersededError.
        """
        # A caller that hangs up just then must not leave half of it.
        return await asyncio.shield(self._finish())

    async def close(self) -> None:
        """End the stream: of an upload that goes on, all that came is kept."""
        async with self._lock:
            await self._let_go()

    async def _finish(self) -> tuple[StoredContext, bool]:
        async with self._lock:
            record, writer = self._live()
            with self._giving_up_where_full():
                await self._kept()
            try:
                context, documents = await self._measure(self._upload.finish, record.blob_key)
            except ServiceError:
                self._is_kept = False
                raise
            with self._giving_up_where_full():
                await self._threads.run(writer.commit)
                index = await self._threads.run(self._upload.index)
                if index is not None:
                    await self._blobs.put(index_key(index.kind, record.blob_key), index.data)
            finished = await self._store.finish(
                record, context, documents, is_named=self._name.is_given
            )
            self._is_over = True
            self._release(writer)
            if finished[0].blob_key != record.blob_key:
                await self._removal.remove_blob(record.blob_key)
        return finished

    async def _let_go(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            if self._opened is None:
                return
            record, writer = self._opened
            try:
                await self._kept()
                if self._is_kept:
                    await self._keep(record, await self._threads.run(writer.suspend))
            except UploadSupersededError:
                pass
            except ObjectStoreError as error:
                _log.warning("the end of an upload was not kept: %s", error.problem)
            finally:
                self._release(writer)
            if not self._is_kept and await self._store.drop(record):
                await self._removal.remove_blob(record.blob_key)
        finally:
            self._upload.close()

    def _release(self, writer: BlobWriter) -> None:
        writer.close()
        self._upload.close()

    def _live(self) -> tuple[UploadRecord, BlobWriter]:
        if self._is_over:
            raise UploadSupersededError(self._name.upload_id)
        assert self._opened is not None, "the stream was not begun"
        return self._opened

    async def _take_again(self, record: UploadRecord) -> None:
        begun = await self._store.documents(record)
        self._kept_bytes, self._kept_documents = record.kept_bytes, len(begun)
        pieces = self._blobs.read_partial(record.blob_key, record.kept_bytes)
        await self._measure(self._upload.take_again, pieces, begun)

    async def _measure(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what `work` on the upload's bytes returns in a thread."""
        is_json = self._plan.kind is ContextKind.JSON
        run = self._threads.check_json if is_json else self._threads.run
        return await run(work, *args, **kwargs)

    def _write(self, writer: BlobWriter, data: bytes) -> None:
        writer.write(data)
        self._upload.take(data)

    def _require_room(self, more_bytes: int) -> None:
        if self._upload.size_bytes >= self._room_seen_at + _ROOM_BYTES:
            self._room_seen_at = self._upload.size_bytes
            self._blobs.require_room(more_bytes)

    @contextlib.contextmanager
    def _giving_up_where_full(self) -> Iterator[None]:
        """Keep nothing of the upload where the disk is full: what it has taken is needed."""
        try:
            yield
        except ObjectStoreFullError:
            self._is_kept = False
            raise

    async def _count(self, more_bytes: int) -> None:
        """Count what comes as stored, before it is."""
        record, writer = self._live()
        missing = self._upload.size_bytes + more_bytes - record.reserved_bytes
        if missing <= (0 if self._plan.size_bytes is not None else _UNCOUNTED_BYTES):
            return
        try:
            record = await self._store.reserve(record, max(missing, _RESERVE_BYTES))
        except StorageQuotaError:
            record = await self._store.reserve(record, missing)
        self._opened = record, writer

    def _keep_now_and_then(self) -> None:
        """Begin to make what came outlast a crash, where enough has come, beside what comes. So
        goes what has no name, or its end would have all of it to write to disk."""
        if self._keeping is not None:
            if not self._keeping.done():
                return
            keeping, self._keeping = self._keeping, None
            keeping.result()
        is_due = (
            self._upload.size_bytes - self._kept_bytes >= _KEEP_BYTES
            or len(self._upload.begun) - self._kept_documents >= _KEEP_DOCUMENTS
        )
        if is_due:
            self._keeping = asyncio.create_task(self._sync())

    async def _sync(self) -> None:
        record, writer = self._live()
        size_bytes = await self._threads.run(writer.sync)
        if self._name.is_given:
            await self._keep(record, size_bytes)
        else:
            self._kept_bytes, self._kept_documents = size_bytes, len(self._upload.begun)

    async def _keep(self, record: UploadRecord, size_bytes: int) -> None:
        first = self._kept_documents
        begun = [d for d in self._upload.begun[first:] if d.offset_bytes <= size_bytes]
        await self._store.keep(record, size_bytes, first, begun)
        self._kept_bytes, self._kept_documents = size_bytes, first + len(begun)

    async def _kept(self) -> None:
        """Wait until what is being kept is."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            await keeping

"""The uploads of every tenant: begun, gone on with, and what is kept of each.

Of the streams of one upload only the last one counts; the ones before it end as superseded.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterable

import blake3

from common.errors import NotFoundError
from orchestrator.blobs import BlobMissingError, BlobStore
from orchestrator.contexts.removal import Removal
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_context import StoredContext
from orchestrator.contexts.upload import Upload
from orchestrator.contexts.upload_plan import UploadLimits, UploadPlan
from orchestrator.contexts.upload_store import UploadStore
from orchestrator.contexts.upload_stream import UploadName, UploadStream
from orchestrator.contexts.upload_threads import UploadThreads


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptUpload:
    """What there is of an upload."""

    size_bytes: int = 0
    """Bytes kept."""
    documents: int = 0
    """Documents begun in them."""
    context: StoredContext | None = None
    """Its context, where it has ended."""


class Uploads:
    """The uploads of every tenant."""

    def __init__(
        self,
        store: UploadStore,
        contexts: ContextStore,
        blobs: BlobStore,
        removal: Removal,
        limits: UploadLimits,
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._blobs = blobs
        self._removal = removal
        self._limits = limits
        self._threads = UploadThreads()
        self._live: dict[UploadName, UploadStream] = {}

    async def open(
        self, tenant: str, plan: UploadPlan, upload_id: str = ""
    ) -> UploadStream | StoredContext:
        """Return a stream of a new upload, or of the one of this id, a UUID; or what it has ended
        with. `close` a stream here.

        Raises LimitAboveCeilingError, RequestIdReusedError, StorageQuotaError,
        UploadsTooManyError, ObjectStoreError or UploadSupersededError.
        """
        name = UploadName(tenant, upload_id or str(uuid.uuid4()), is_given=bool(upload_id))
        upload = Upload(plan, self._limits)
        stream = UploadStream(self._store, self._blobs, self._removal, self._threads, upload, name)
        earlier, self._live[name] = self._live.get(name), stream
        try:
            if earlier is not None:
                await earlier.close()
            context_id = await stream.begin(_new_key(tenant))
        except BaseException:
            await self.close(stream)
            raise
        if not context_id:
            return stream
        await self.close(stream)
        try:
            return await self._contexts.get(tenant, context_id)
        except NotFoundError:  # deleted since: the upload is one like any other
            await self._store.drop(await self._store.get(tenant, name.upload_id))
            return await self.open(tenant, plan, upload_id)

    async def close(self, stream: UploadStream) -> None:
        """End a stream; what came of a named upload is kept."""
        try:
            await stream.close()
        finally:
            for name in [name for name, live in self._live.items() if live is stream]:
                del self._live[name]

    async def kept(self, tenant: str, upload_id: str) -> KeptUpload:
        """Return what is kept of a named upload; a stream that still sends is ended.

        Raises NotFoundError or ObjectStoreError.
        """
        live = self._live.get(UploadName(tenant, upload_id, is_given=True))
        if live is not None:
            await live.close()
        record = await self._store.get(tenant, upload_id)
        while record.context_id is None:
            try:
                writer = await self._threads.begin_blob(
                    self._blobs, record.blob_key, record.kept_bytes
                )
            except BlobMissingError:
                return KeptUpload()
            try:
                # A stream at another replica may have ended just before: now none writes.
                seen, record = record, await self._store.get(tenant, upload_id)
            finally:
                writer.close()
            if record == seen:
                documents = await self._store.documents(record)
                return KeptUpload(size_bytes=record.kept_bytes, documents=len(documents))
        return KeptUpload(context=await self._contexts.get(tenant, record.context_id))

    async def store(
        self, tenant: str, plan: UploadPlan, pieces: AsyncIterable[bytes]
    ) -> StoredContext:
        """Store one text or JSON value that comes in pieces of up to CHUNK_BYTES_MAX.

        Raises what an upload raises.
        """
        stream = await self.open(tenant, plan)
        assert isinstance(stream, UploadStream), "an upload without a name has not ended before"
        try:
            offset = 0
            async for piece in pieces:
                await stream.chunk(offset, piece)
                offset += len(piece)
            return (await stream.finish())[0]
        finally:
            await self.close(stream)


def _new_key(tenant: str) -> str:
    """Return a new key for a blob of a tenant. No two tenants share bytes: whether something is
    stored already must tell nobody what another one has."""
    owner = blake3.blake3(tenant.encode()).hexdigest()[:16]
    name = uuid.uuid4().hex
    return f"blobs/{owner}/{name[:2]}/{name}"

"""Deletion of contexts and of what belongs to them: on request, when their time is over, and of
uploads that nobody has gone on with.

First the database says that something is to go, then the bytes go, then the database forgets it:
what a killed process leaves undone, the next sweep does.
"""

from __future__ import annotations

import logging
import time

from common.errors import NotFoundError
from orchestrator.blobs import BlobStore
from orchestrator.contexts.errors import ContextInUseError
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_blobs import StoredBlobs
from orchestrator.contexts.upload_store import UploadStore
from orchestrator.errors import ObjectStoreError

_log = logging.getLogger(__name__)
_INDEX_KINDS = ("text", "json")
_AT_ONCE = 100


def index_key(kind: str, blob_key: str) -> str:
    """Return where the index of a blob is kept, of kind `text` or `json`."""
    return f"indexes/{kind}/{blob_key}"


class Removal:
    """Deletes contexts, blobs and uploads."""

    def __init__(
        self,
        contexts: ContextStore,
        uploads: UploadStore,
        stored: StoredBlobs,
        blobs: BlobStore,
        *,
        upload_ttl_s: float,
    ) -> None:
        """Keep uploads for `upload_ttl_s` after their last bytes, or their end."""
        self._contexts = contexts
        self._uploads = uploads
        self._stored = stored
        self._blobs = blobs
        self._upload_ttl_s = upload_ttl_s

    async def delete_context(self, tenant: str, context_id: str, *, actor: str = "") -> None:
        """Delete a context, and its bytes unless another one has them. `actor` names the API key
        that asks for it, where one does. Raises NotFoundError or ContextInUseError."""
        blob_key = await self._contexts.delete(tenant, context_id, actor=actor)
        if blob_key:
            await self.remove_blob(blob_key)

    async def remove_blob(self, blob_key: str) -> None:
        """Remove a blob that is marked as to be removed, with its index. A failure is logged, and
        the next sweep tries again."""
        try:
            for kind in _INDEX_KINDS:
                await self._blobs.delete(index_key(kind, blob_key))
            await self._blobs.delete(blob_key)
        except ObjectStoreError as error:
            _log.warning("a blob is removed later: %s", error.problem)
            return
        await self._stored.forget(blob_key)

    async def sweep(self) -> None:
        """Remove all whose time is over."""
        await self._sweep_contexts()
        before_us = time.time_ns() // 1000 - int(self._upload_ttl_s * 1e6)
        while uploads := await self._uploads.left_alone(before_us=before_us, count=_AT_ONCE):
            for upload in uploads:
                if await self._uploads.drop(upload):
                    await self.remove_blob(upload.blob_key)
        for blob_key in await self._stored.removed(count=_AT_ONCE):
            await self.remove_blob(blob_key)

    async def _sweep_contexts(self) -> None:
        for tenant, context_id in await self._contexts.expired(count=_AT_ONCE):
            try:
                await self.delete_context(tenant, context_id)
            except ContextInUseError:
                continue
            except NotFoundError:  # another replica was faster
                continue

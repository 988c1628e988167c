"""The parts that contexts are made of, put together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from obstore.store import S3Store

from common.database import Database
from orchestrator.blobs import BlobStore
from orchestrator.chores import Chore, doing
from orchestrator.contexts.removal import Removal
from orchestrator.contexts.servicer import ContextServicer
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_blobs import StoredBlobs
from orchestrator.contexts.upload_plan import UploadLimits
from orchestrator.contexts.upload_store import UploadStore
from orchestrator.contexts.uploads import Uploads
from orchestrator.contexts.uri_sources import UriSources


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextSettings:
    """How contexts are kept."""

    limits: UploadLimits
    """What uploads may hold."""
    upload_ttl_s: float
    """How long uploads are kept that nobody goes on with."""
    sweep_interval_s: float
    """Between two looks for what is to be removed."""
    folders: Sequence[Path]
    """Folders whose files every tenant may make contexts of."""
    buckets: Mapping[str, S3Store]
    """Buckets whose objects every tenant may make contexts of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contexts:
    """What others need of them."""

    store: ContextStore
    """Contexts in the database."""
    uploads: Uploads
    """The way in."""
    removal: Removal
    """The way out."""
    servicer: ContextServicer
    """The service."""


@contextlib.asynccontextmanager
async def open_contexts(
    database: Database, blobs: BlobStore, settings: ContextSettings
) -> AsyncIterator[Contexts]:
    """Put the parts together; while the block lasts, what is to be removed is."""
    store = ContextStore(database)
    stored = StoredBlobs(database, tenant_bytes_max=settings.limits.tenant_bytes_max)
    upload_store = UploadStore(database, stored, unfinished_max=settings.limits.unfinished_max)
    removal = Removal(store, upload_store, stored, blobs, upload_ttl_s=settings.upload_ttl_s)
    uploads = Uploads(upload_store, store, blobs, removal, settings.limits)
    servicer = ContextServicer(
        store, blobs, uploads, removal, UriSources(settings.folders, settings.buckets)
    )
    sweeping = Chore(name="contexts", work=removal.sweep, every_s=settings.sweep_interval_s)
    async with doing(sweeping):
        yield Contexts(store=store, uploads=uploads, removal=removal, servicer=servicer)

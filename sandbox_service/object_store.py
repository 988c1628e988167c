"""Which object store there is, by the configuration."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from common.parted_objects import PartedObjects, is_remote
from sandbox_service.config import SandboxConfig
from sandbox_service.object_cache import CachedObjects, SplitObjects
from sandbox_service.objects import FolderObjects, ObjectStore


@contextlib.asynccontextmanager
async def open_object_store(config: SandboxConfig) -> AsyncIterator[ObjectStore]:
    """Open the object store; while the block lasts, copies of blobs are kept within their bounds.

    Raises ConfigError.
    """
    if not is_remote(config.object_store):
        yield _open_folder(Path(config.object_store), config.session_store)
        return
    remote = PartedObjects.open(
        config.object_store,
        endpoint=config.object_store_endpoint,
        region=config.object_store_region,
        credentials=config.object_store_credentials,
    )
    cached = CachedObjects(
        remote,
        config.object_cache,
        bytes_max=config.object_cache_bytes_max,
        kept_s=config.object_cache_ttl_s,
    )
    async with cached.sweeping():
        if config.session_store is None:
            yield cached
        else:
            yield SplitObjects(cached, _open_folder(config.session_store))


def _open_folder(root: Path, written: Path | None = None) -> FolderObjects:
    objects = FolderObjects(root, written)
    objects.drop_partial()
    return objects

"""Which kind of object store there is, by the configuration."""

from __future__ import annotations

from pathlib import Path

from common.parted_objects import PartedObjects, is_remote
from orchestrator.blobs import BlobStore, FolderBlobStore
from orchestrator.s3_blobs import S3BlobStore


def open_object_store(
    location: str, *, endpoint: str, region: str, credentials: Path | None, reserve_bytes: int = 0
) -> BlobStore:
    """Open the object store in a folder, whose disk keeps `reserve_bytes` free of uploads, or at
    `s3://bucket/prefix`; raises ConfigError."""
    if not is_remote(location):
        store = FolderBlobStore(Path(location), reserve_bytes=reserve_bytes)
        store.drop_partial()
        return store
    return S3BlobStore(
        PartedObjects.open(location, endpoint=endpoint, region=region, credentials=credentials)
    )

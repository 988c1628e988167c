"""Blobs that are begun for a caller who may go away meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from orchestrator.blobs import BlobMissingError, BlobWriter, FolderBlobStore
from orchestrator.contexts.upload_threads import UploadThreads
from orchestrator.errors import ObjectStoreError


class SlowBlobs(FolderBlobStore):
    """A store that takes as long to begin a blob as it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = threading.Event()
        self.answers = threading.Event()

    def begin(self, key: str, kept_bytes: int = 0) -> BlobWriter:
        self.asked.set()
        assert self.answers.wait(60)
        return super().begin(key, kept_bytes)


async def leave_while_it_begins(
    threads: UploadThreads, blobs: SlowBlobs, kept_bytes: int = 0
) -> None:
    """Begin a blob and be cut off before it has begun."""
    beginning = asyncio.create_task(threads.begin_blob(blobs, "blobs/x", kept_bytes))
    await asyncio.to_thread(blobs.asked.wait, 60)
    beginning.cancel()
    blobs.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await beginning


async def test_a_caller_who_goes_away_meanwhile_leaves_nobody_holding_the_blob(
    tmp_path: Path,
) -> None:
    """A client whose connection breaks just then comes back, and is told to wait for who holds
    it: for ever, where nobody does."""
    threads, blobs = UploadThreads(), SlowBlobs(tmp_path)
    await leave_while_it_begins(threads, blobs)

    writer = await threads.begin_blob(blobs, "blobs/x")

    with pytest.raises(ObjectStoreError):  # held, as long as somebody writes
        await threads.begin_blob(blobs, "blobs/x")
    writer.close()


async def test_a_caller_who_goes_away_while_it_fails_is_gone_all_the_same(
    tmp_path: Path,
) -> None:
    threads, blobs = UploadThreads(), SlowBlobs(tmp_path)
    await leave_while_it_begins(threads, blobs, kept_bytes=10)

    with pytest.raises(BlobMissingError):
        await threads.begin_blob(blobs, "blobs/x", 10)

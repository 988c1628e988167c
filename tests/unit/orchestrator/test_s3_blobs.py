"""The object store in a bucket, where that does not do as it is asked."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from common.parted_objects import PART_BYTES, RemoteStoreError
from orchestrator.errors import ObjectStoreError
from orchestrator.s3_blobs import S3BlobStore
from tests.support.eventually import eventually


class AwayParts:
    """Parts in a store that is away."""

    def put(self, key: str, number: int, data: bytes) -> None:
        raise RemoteStoreError("it is away")


class SilentParts:
    """Parts in a store that does not answer until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()

    def put(self, key: str, number: int, data: bytes) -> None:
        self.asked += 1
        self.answers.wait()
        raise RemoteStoreError("it has not answered")


def store_of(parts: Any) -> S3BlobStore:
    return S3BlobStore(parts)


@pytest.mark.parametrize("size_bytes", [1, PART_BYTES + 1])
def test_a_writer_that_failed_can_be_closed(size_bytes: int) -> None:
    """Who tidies up after the failure must not fail for another reason, which nobody foresees."""
    writer = store_of(AwayParts()).begin("blobs/x")

    with pytest.raises(ObjectStoreError) as caught:
        writer.write(bytes(size_bytes))
        writer.commit()

    writer.close()
    assert caught.value.retry_after_s is not None


async def test_a_store_that_never_answers_takes_no_thread_from_others() -> None:
    """Replies are parsed in threads too, also of runs that need nothing of the store."""
    parts = SilentParts()
    store = store_of(parts)
    waiting = [asyncio.create_task(store.put(f"x/{number}", b"")) for number in range(100)]
    await eventually(lambda: parts.asked >= 20)  # more than there are threads for all

    assert await asyncio.to_thread(lambda: "parsed") == "parsed"

    assert not any(task.done() for task in waiting)
    parts.answers.set()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, ObjectStoreError) for end in ends)

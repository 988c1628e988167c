"""A disk that is full, or nearly: what is refused says what is full, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.context_pb2 import Context
from sqlalchemy import func, select, text

from common.database import Database, DatabaseFullError
from orchestrator import tables
from orchestrator.blobs import FolderBlobStore
from orchestrator.tables import MIGRATIONS
from tests.support.contexts import ContextStack, context_service, text_messages
from tests.support.orchestrator import start

FREE_BYTES = 64 << 20
RESERVE_BYTES = 16 << 20
MIB = 1 << 20


@pytest.fixture
async def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ContextStack]:
    """A service on a disk of its own, of which a part is a reserve."""
    objects = tmp_path / "objects"

    def statvfs(path: str | Path) -> Any:
        taken = sum(each.stat().st_size for each in objects.rglob("*") if each.is_file())
        return SimpleNamespace(f_bavail=FREE_BYTES - taken, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    store = FolderBlobStore(objects, reserve_bytes=RESERVE_BYTES)
    async with context_service(tmp_path, blobs=store) as running:
        yield running


async def leftovers(stack: ContextStack) -> tuple[list[str], int, int]:
    """Files of the object store, uploads in the database, and bytes that count as stored."""
    async with stack.database.reading() as connection:
        uploads = await connection.scalar(select(func.count()).select_from(tables.uploads))
        stored = await connection.scalar(select(func.sum(tables.storage_use.c.size_bytes)))
    files = [each.name for each in (stack.folder / "objects").rglob("*") if each.is_file()]
    return files, uploads or 0, stored or 0


def full_after(size_bytes: int) -> Callable[..., int]:
    """Return a `pwrite` of a disk that has room for so much."""
    written = 0
    pwrite = os.pwrite

    def limited(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    return limited


@pytest.mark.parametrize("is_named", [False, True])
async def test_an_upload_that_does_not_fit_is_refused_before_it_is_sent(
    stack: ContextStack, is_named: bool
) -> None:
    upload_id = str(uuid.uuid4()) if is_named else ""
    size_bytes = FREE_BYTES - RESERVE_BYTES + 1
    messages = [start(Context.KIND_TEXT, size_bytes=size_bytes, upload_id=upload_id)]

    error = await stack.refused_upload(*messages)

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "ERROR_REASON_STORAGE_FULL"
    assert error.metadata == {
        "store": "object store",
        "bytes_needed": str(size_bytes),
        "bytes_free": str(size_bytes - 1),
    }
    assert "operator" in str(error)
    assert await leftovers(stack) == ([], 0, 0)


async def test_what_just_fits_is_taken(stack: ContextStack) -> None:
    data = b"x" * (FREE_BYTES - RESERVE_BYTES)

    context = await stack.upload_text(data, size_bytes=len(data))

    assert context.size_bytes == len(data)


@pytest.mark.parametrize("is_named", [False, True])
async def test_an_upload_that_announced_nothing_stops_at_the_reserve(
    stack: ContextStack, is_named: bool
) -> None:
    """And nothing of it is kept: the room is needed."""
    upload_id = str(uuid.uuid4()) if is_named else ""
    data = b"x" * (FREE_BYTES - MIB)

    error = await stack.refused_upload(*text_messages(data, upload_id=upload_id))

    assert error.reason == "ERROR_REASON_STORAGE_FULL"
    assert int(error.metadata["bytes_free"]) < 8 * MIB
    assert await leftovers(stack) == ([], 0, 0)
    assert (await stack.upload_text(b"small")).size_bytes == 5


@pytest.mark.parametrize("room_bytes", [3 * MIB, 6 * MIB + 100])
async def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_written(
    stack: ContextStack, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    """Others write to it too. With the larger room it is the index that finds none."""
    monkeypatch.setattr(os, "pwrite", full_after(room_bytes))
    messages = text_messages(b"x" * 6 * MIB, upload_id=str(uuid.uuid4()))

    error = await stack.refused_upload(*messages)

    monkeypatch.undo()
    assert error.reason == "ERROR_REASON_STORAGE_FULL"
    assert error.metadata == {"store": "object store"}
    assert await leftovers(stack) == ([], 0, 0)


async def test_a_full_database_says_so_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """Whoever waits for a database that is away waits for this one too."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/x.sqlite", MIGRATIONS)
    row = {"target": "runs/1", "reason": "x" * 400_000, "created_by": "", "created_us": 1}

    with pytest.raises(DatabaseFullError) as caught:
        async with database.writing() as connection:
            pages = await connection.scalar(text("PRAGMA page_count"))
            await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            await connection.execute(tables.kill_switches.insert().values(row))

    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == ErrorReason.ERROR_REASON_DATABASE_FULL
    assert caught.value.retry_after_s == 10.0
    async with database.writing() as connection:
        await connection.execute(text("PRAGMA max_page_count = 1000000"))
        await connection.execute(tables.kill_switches.insert().values(row))
    await database.close()

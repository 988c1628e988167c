"""Blobs in a folder: whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.blobs import FolderBlobStore


async def read(store: FolderBlobStore, key: str, *, offset: int = 0, size: int = 100) -> bytes:
    return b"".join([piece async for piece in store.read(key, offset=offset, size=size)])


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


async def test_a_blob_appears_under_its_key_when_it_is_committed(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    writer = store.create()
    writer.write(b"ab")
    writer.write(b"cd")

    before = [name for name in files(tmp_path) if not name.startswith("partial/")]
    writer.commit("blobs/x/y")
    writer.abort()

    assert before == []
    assert files(tmp_path) == ["blobs/x/y"]
    assert await read(store, "blobs/x/y") == b"abcd"


async def test_an_aborted_blob_leaves_nothing(tmp_path: Path) -> None:
    writer = FolderBlobStore(tmp_path).create()
    writer.write(b"ab")

    writer.abort()

    assert files(tmp_path) == []


async def test_what_a_killed_process_left_is_dropped(tmp_path: Path) -> None:
    FolderBlobStore(tmp_path)
    (tmp_path / "partial" / "cafe").write_bytes(b"ab")

    FolderBlobStore(tmp_path).drop_partial()

    assert files(tmp_path) == []


async def test_a_small_blob_is_put_and_replaced(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)

    await store.put("outputs/a", b"one")
    await store.put("outputs/a", b"three")

    assert await read(store, "outputs/a", offset=2, size=2) == b"re"


async def test_reading_a_blob_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await read(FolderBlobStore(tmp_path), "blobs/none")

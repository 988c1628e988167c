"""Blobs in a folder: whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.blobs import BlobStore, FolderBlobStore
from orchestrator.errors import ObjectStoreError
from tests.support.blob_store_contract import BlobStoreContract, read


class TestFolder(BlobStoreContract):
    """The contract, on a folder."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return FolderBlobStore(tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_blob_appears_under_its_key_when_it_is_committed(tmp_path: Path) -> None:
    writer = FolderBlobStore(tmp_path).begin("blobs/x/y")
    writer.write(b"ab")
    writer.write(b"cd")

    before = [name for name in files(tmp_path) if not name.startswith("partial/")]
    writer.commit()
    writer.close()

    assert before == []
    assert files(tmp_path) == ["blobs/x/y"]


def test_no_two_write_the_same_blob(tmp_path: Path) -> None:
    """A process that was thought dead must not write into what another one goes on with."""
    store = FolderBlobStore(tmp_path)
    writer = store.begin("blobs/x")
    writer.write(b"ab")

    with pytest.raises(ObjectStoreError):
        store.begin("blobs/x", 2)

    writer.close()
    store.begin("blobs/x", 2).close()


def test_a_blob_that_was_named_just_before_a_crash_is_gone_on_with(tmp_path: Path) -> None:
    """The upload that it belongs to has not heard of it: it must not begin anew."""
    store = FolderBlobStore(tmp_path)
    writer = store.begin("blobs/x")
    writer.write(b"abc")
    writer.commit()
    writer.close()

    store.begin("blobs/x", 3).close()

    assert b"".join(store.read_partial("blobs/x", 3)) == b"abc"


def test_who_only_looks_whether_a_blob_can_be_gone_on_with_changes_nothing(tmp_path: Path) -> None:
    """Another process may have kept more of it, or finished it, since it was last heard of."""
    store = FolderBlobStore(tmp_path)
    writer = store.begin("blobs/x")
    writer.write(b"abc")
    writer.close()
    store.begin("blobs/x", 1).close()
    store.begin("blobs/x").close()

    writer = store.begin("blobs/x", 3)
    writer.commit()
    writer.close()
    store.begin("blobs/x", 1).close()

    assert files(tmp_path) == ["blobs/x"]
    assert (tmp_path / "blobs/x").read_bytes() == b"abc"


def test_a_blob_goes_on_behind_what_is_kept_of_it(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    writer = store.begin("blobs/x")
    writer.write(b"abc")
    writer.close()

    writer = store.begin("blobs/x", 1)
    writer.write(b"z")
    writer.commit()
    writer.close()

    assert (tmp_path / "blobs/x").read_bytes() == b"az"


async def test_small_blobs_that_a_killed_process_left_are_dropped_in_time(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    old, fresh, upload = (tmp_path / "partial" / name for name in ("put.a", "put.b", "blobs.c"))
    for path in (old, fresh, upload):
        path.write_bytes(b"ab")
    for path in (old, upload):
        os.utime(path, (0, 0))

    store.drop_partial()

    assert files(tmp_path) == ["partial/blobs.c", "partial/put.b"]


async def test_a_disk_that_fails_is_an_error_that_names_no_path(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path)
    (tmp_path / "blobs").write_bytes(b"a file where a folder should be")

    with pytest.raises(ObjectStoreError) as caught:
        await store.put("blobs/x", b"ab")

    assert str(tmp_path) not in caught.value.message
    with pytest.raises(ObjectStoreError):
        await read(store, "blobs/x")

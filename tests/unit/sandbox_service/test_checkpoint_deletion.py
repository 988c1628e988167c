"""Deletion of checkpoints, over folders and objects that are as a service writes them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from sandbox_service import objects as objects_module
from sandbox_service.checkpoints import CheckpointStore
from sandbox_service.objects import FolderObjects, ObjectError

OWNER = "run-1"


class Objects(FolderObjects):
    """A folder that can fail at a key."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fails_at = ""

    def open(self, key: str, size_bytes: int | None = None) -> int:
        if key == self.fails_at:
            raise ObjectError("the store is away")
        return super().open(key, size_bytes)

    def delete(self, key: str) -> None:
        if key == self.fails_at:
            raise ObjectError("the store is away")
        super().delete(key)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path)


@pytest.fixture
def store(objects: Objects) -> CheckpointStore:
    return CheckpointStore(objects, "digest")


def put(objects: Objects, key: str, data: bytes) -> str:
    with objects.writer() as writer:
        writer.write(data)
        writer.commit(key)
    return key


def checkpoint(objects: Objects, *layers: bytes, owner: str = OWNER) -> str:
    """A checkpoint of these layers; returns its key."""
    folder = f"checkpoints/of/{owner}"
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    for digest, layer in zip(digests, layers, strict=True):
        put(objects, f"{folder}/layers/{digest}", layer)
    manifest = {"form": 1, "layers": [{"digest": each, "data_bytes": 0} for each in digests]}
    data = msgspec.json.encode(manifest)
    return put(objects, f"{folder}/{hashlib.sha256(data).hexdigest()}", data)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def layer_key(layer: bytes) -> str:
    return f"checkpoints/of/{OWNER}/layers/{hashlib.sha256(layer).hexdigest()}"


async def test_what_an_owner_has_goes_whole_and_nobody_elses(
    store: CheckpointStore, objects: Objects, tmp_path: Path
) -> None:
    checkpoint(objects, b"a", b"b")
    others = checkpoint(objects, b"a", owner="run-10")

    assert await store.delete(OWNER, [], age_min_s=0) == 3

    assert files(tmp_path) == {others, layer_key(b"a").replace(OWNER, "run-10")}
    assert not (tmp_path / "checkpoints/of" / OWNER).exists()
    assert await store.delete(OWNER, [], age_min_s=0) == 0


async def test_layers_stay_that_a_kept_checkpoint_needs(
    store: CheckpointStore, objects: Objects, tmp_path: Path
) -> None:
    checkpoint(objects, b"base", b"old")
    kept = checkpoint(objects, b"base", b"new")

    assert await store.delete(OWNER, [kept], age_min_s=0) == 2

    assert files(tmp_path) == {kept, layer_key(b"base"), layer_key(b"new")}


async def test_what_is_young_stays_with_its_layers_however_old_those_are(
    store: CheckpointStore, objects: Objects, tmp_path: Path
) -> None:
    """A checkpoint that is just being taken counts on layers that are there."""
    old = checkpoint(objects, b"base", b"old")
    young = checkpoint(objects, b"base")
    for key in (old, layer_key(b"base"), layer_key(b"old")):
        os.utime(tmp_path / key, (1, 1))

    assert await store.delete(OWNER, [], age_min_s=60) == 2

    assert files(tmp_path) == {young, layer_key(b"base")}


async def test_no_layer_goes_where_a_kept_checkpoint_cannot_be_read(
    store: CheckpointStore, objects: Objects, tmp_path: Path
) -> None:
    """A store that is away for a moment must not cost a checkpoint its layers."""
    kept = checkpoint(objects, b"base")
    before = files(tmp_path)
    objects.fails_at = kept

    with pytest.raises(ObjectError):
        await store.delete(OWNER, [kept], age_min_s=0)

    assert files(tmp_path) == before


async def test_a_deletion_that_broke_off_is_finished_by_the_next(
    store: CheckpointStore, objects: Objects, tmp_path: Path
) -> None:
    checkpoint(objects, b"a", b"b")
    objects.fails_at = layer_key(b"b")
    with pytest.raises(ObjectError):
        await store.delete(OWNER, [], age_min_s=0)
    assert layer_key(b"b") in files(tmp_path)
    assert not [name for name in files(tmp_path) if "layers" not in name]

    objects.fails_at = ""
    await store.delete(OWNER, [], age_min_s=0)

    assert files(tmp_path) == set()


@pytest.mark.parametrize(("times", "is_stored"), [(1, True), (100, False)])
def test_a_folder_that_goes_with_its_last_object_is_made_again_for_the_next(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, times: int, is_stored: bool
) -> None:
    """A sweep empties an owner's folder in the moment in which another checkpoint is stored."""
    make_folder, left = objects_module._make_folder, [None] * times

    def make_and_lose(folder: Path) -> None:
        make_folder(folder)
        if folder.name == OWNER and left:
            left.pop()
            folder.rmdir()

    monkeypatch.setattr(objects_module, "_make_folder", make_and_lose)
    key = f"checkpoints/of/{OWNER}/{'0' * 64}"
    with contextlib.nullcontext() if is_stored else pytest.raises(ObjectError):
        put(objects, key, b"layer")

    assert ([found.key for found in objects.found(f"checkpoints/of/{OWNER}")] == [key]) == is_stored

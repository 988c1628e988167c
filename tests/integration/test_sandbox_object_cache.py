"""Blobs of an S3-compatible server, read through a folder with bounds."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.parted_objects import PART_BYTES, PartedObjects
from sandbox_service.object_cache import CachedObjects, SplitObjects
from sandbox_service.objects import FolderObjects, ObjectError, ObjectMissingError
from tests.support.cutting_proxy import Gate, cutting_proxy
from tests.support.s3 import S3Server

LARGE = os.urandom(1 << 20) * 33


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def remote(server: S3Server) -> PartedObjects:
    return server.objects()


def cache(remote: PartedObjects, folder: Path, *, bytes_max: int = 1 << 40) -> CachedObjects:
    return CachedObjects(remote, folder, bytes_max=bytes_max, kept_s=3600.0)


def put(remote: PartedObjects, key: str, data: bytes) -> None:
    for number in range(max(-(-len(data) // PART_BYTES), 1)):
        remote.put(key, number, data[number * PART_BYTES : (number + 1) * PART_BYTES])


def content(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


def copies(folder: Path) -> list[str]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(str(p.relative_to(folder)) for p in found)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, len(LARGE)])
def test_a_blob_is_fetched_whole(remote: PartedObjects, tmp_path: Path, size: int) -> None:
    put(remote, "blobs/x", LARGE[:size])

    assert content(cache(remote, tmp_path).open("blobs/x", size)) == LARGE[:size]


def test_a_blob_is_fetched_once(remote: PartedObjects, tmp_path: Path) -> None:
    """Also by several who want it at the same time."""
    put(remote, "blobs/x", LARGE)
    one, fetched = cache(remote, tmp_path), []
    whole_size = remote.size

    def counted(key: str) -> int | None:
        fetched.append(key)
        return whole_size(key)

    remote.size = counted  # type: ignore[method-assign]
    threads = [threading.Thread(target=lambda: os.close(one.open("blobs/x"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fetched == ["blobs/x"]
    assert copies(tmp_path) == ["blobs/x"]


def test_a_blob_of_another_size_is_refused(remote: PartedObjects, tmp_path: Path) -> None:
    put(remote, "blobs/x", b"abc")

    with pytest.raises(ObjectError, match="3 bytes, not 4"):
        cache(remote, tmp_path).open("blobs/x", 4)


@pytest.mark.parametrize("key", ["blobs/none", "indexes/text/blobs/none"])
def test_a_blob_that_is_not_there_is_missing(
    remote: PartedObjects, tmp_path: Path, key: str
) -> None:
    with pytest.raises(ObjectMissingError):
        cache(remote, tmp_path).open(key)

    assert copies(tmp_path) == []


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "blobs/../../x", ".partial/x", ""])
def test_a_key_never_leads_out_of_the_folder(
    remote: PartedObjects, tmp_path: Path, key: str
) -> None:
    with pytest.raises(ObjectError, match="not one of a blob"):
        cache(remote, tmp_path).open(key)


def test_copies_go_when_room_is_needed_and_none_that_is_open(
    remote: PartedObjects, tmp_path: Path
) -> None:
    """The one that was used longest ago goes first; a session may read for hours."""
    one = cache(remote, tmp_path, bytes_max=2_500)
    for name in "abc":
        put(remote, f"blobs/{name}", name.encode() * 1_000)
    in_use = one.open("blobs/a")
    os.close(one.open("blobs/b"))
    os.utime(tmp_path / "blobs" / "a", (1, 1))
    shared = os.dup(in_use)
    os.close(in_use)

    os.close(one.open("blobs/c"))

    assert copies(tmp_path) == ["blobs/a", "blobs/c"]
    assert content(shared) == b"a" * 1_000
    one.sweep(1_000)
    assert copies(tmp_path) == ["blobs/c"]


def test_copies_that_nobody_uses_go_in_time(remote: PartedObjects, tmp_path: Path) -> None:
    """So that what was deleted elsewhere is deleted here."""
    one = cache(remote, tmp_path)
    for name in "ab":
        put(remote, f"blobs/{name}", b"abc")
        os.close(one.open(f"blobs/{name}"))
    os.utime(tmp_path / "blobs" / "a", (1, 1))

    one.sweep()

    assert copies(tmp_path) == ["blobs/b"]


def test_what_is_written_is_read_by_others(remote: PartedObjects, tmp_path: Path) -> None:
    """Checkpoints go from one host to another."""
    here, there = cache(remote, tmp_path / "here"), cache(remote, tmp_path / "there")
    with here.writer() as writer:
        writer.write(LARGE[:100])
        writer.write(memoryview(LARGE)[100:])
        with pytest.raises(ObjectMissingError):
            there.open("checkpoints/x")
        writer.commit("checkpoints/x")

    assert content(there.open("checkpoints/x")) == LARGE
    here.delete("checkpoints/x")
    with pytest.raises(ObjectMissingError):
        here.open("checkpoints/x")


def test_what_is_in_a_folder_of_keys_is_found_and_nothing_beside_it(
    remote: PartedObjects, tmp_path: Path
) -> None:
    """An owner's checkpoints are deleted by it."""
    one = cache(remote, tmp_path)
    keys = {"checkpoints/of/run-1/a", "checkpoints/of/run-1/layers/b"}
    for key in (*keys, "checkpoints/of/run-10/a", "checkpoints/c"):
        put(remote, key, LARGE)

    found = list(one.found("checkpoints/of/run-1"))

    assert {each.key for each in found} == keys
    assert all(abs(each.stored_at - time.time()) < 60 for each in found)
    for each in found:
        one.delete(each.key)
    assert list(one.found("checkpoints/of/run-1")) == []
    assert {each.key for each in one.found("checkpoints")} == {
        *("checkpoints/c", "checkpoints/of/run-10/a"),
    }
    with pytest.raises(ObjectError):
        next(one.found("../checkpoints"))


def test_what_was_not_committed_is_dropped(remote: PartedObjects, tmp_path: Path) -> None:
    with cache(remote, tmp_path).writer() as writer:
        writer.write(b"abc")

    assert copies(tmp_path) == []


def test_a_blob_without_its_first_part_is_not_there(remote: PartedObjects, tmp_path: Path) -> None:
    """As a writer leaves it that was killed in between."""
    remote.put("checkpoints/x", 1, b"abc")

    with pytest.raises(ObjectMissingError):
        cache(remote, tmp_path).open("checkpoints/x")


def test_a_store_of_its_own_takes_what_the_service_writes(
    remote: PartedObjects, tmp_path: Path
) -> None:
    put(remote, "blobs/x", b"context")
    split = SplitObjects(cache(remote, tmp_path / "cache"), FolderObjects(tmp_path / "own"))
    with split.writer() as writer:
        writer.write(b"index")
        writer.commit("indexes/text/blobs/x")

    assert content(split.open("blobs/x")) == b"context"
    assert content(split.open("indexes/text/blobs/x")) == b"index"
    assert remote.size("indexes/text/blobs/x") is None
    split.delete("indexes/text/blobs/x")
    assert copies(tmp_path / "own") == []


async def test_a_store_that_is_gone_is_an_error_and_copies_serve(
    server: S3Server, tmp_path: Path
) -> None:
    gate = Gate()
    async with cutting_proxy(server.endpoint.removeprefix("http://"), gate=gate) as address:
        remote = server.objects(endpoint=f"http://{address}")
        one = cache(remote, tmp_path)
        await asyncio.to_thread(put, remote, "blobs/x", b"abc")
        os.close(await asyncio.to_thread(one.open, "blobs/x"))
        gate.close()

        copy = await asyncio.to_thread(one.open, "blobs/x")
        with pytest.raises(ObjectError, match="does not answer") as caught:
            await asyncio.to_thread(one.open, "blobs/y")

    assert content(copy) == b"abc"
    assert address not in str(caught.value)


async def test_sweeping_ends_with_its_block(remote: PartedObjects, tmp_path: Path) -> None:
    async with asyncio.timeout(10), cache(remote, tmp_path).sweeping():
        put(remote, "blobs/x", b"abc")

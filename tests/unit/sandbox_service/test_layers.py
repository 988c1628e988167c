"""Layers between workers: sealed, shared, stored, merged, and given back."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from sandbox_service import layers
from sandbox_service.guest_memory import WASM_PAGE_BYTES
from sandbox_service.layer_store import LayerDamagedError, LayerStore, StoredLayer, key_of
from sandbox_service.layers import LAYERS_MAX, LayerError, LayerFile
from sandbox_service.objects import FolderObjects, ObjectError
from sandbox_service.session_memory import Layer, SessionMemory
from sandbox_service.sparse_files import PAGE_BYTES

MEMORY_BYTES = 64 * WASM_PAGE_BYTES
FOLDER = "checkpoints"


def written(*pages: int, byte: bytes = b"x") -> LayerFile:
    """A layer with these pages."""
    layer = LayerFile(MEMORY_BYTES)
    for page in pages:
        os.pwrite(layer.fd, byte * PAGE_BYTES, page * PAGE_BYTES)
    return layer


def finished(*pages: int, byte: bytes = b"x") -> LayerFile:
    layer = written(*pages, byte=byte)
    layer.finish(MEMORY_BYTES)
    return layer


def first_bytes(layer: LayerFile, pages: int) -> bytes:
    return b"".join(os.pread(layer.fd, 1, page * PAGE_BYTES) for page in range(pages))


def open_files() -> int:
    """Count files, also those in memory: sockets and pipes are others'."""
    names = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            names.append(str(file.readlink()))
    return sum(name.startswith("/") for name in names)


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(FolderObjects(tmp_path))


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Descriptors are memory here."""
    before = open_files()
    yield
    assert open_files() <= before  # of others' files some may be closed meanwhile


def test_a_finished_layer_cannot_be_written_by_anybody() -> None:
    """Forks and checkpoints rely on it, and workers have descriptors of it."""
    layer = written(3)
    workers = os.dup(layer.fd)
    layer.finish(MEMORY_BYTES)

    for attempt in (
        lambda: os.pwrite(workers, b"y", 3 * PAGE_BYTES),
        lambda: os.ftruncate(workers, 0),
        lambda: os.ftruncate(workers, 2 * MEMORY_BYTES),
        lambda: mmap.mmap(workers, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_WRITE),
    ):
        with pytest.raises(PermissionError):
            attempt()
    with mmap.mmap(workers, MEMORY_BYTES, mmap.MAP_PRIVATE) as private:
        private[0] = 1
    os.close(workers)
    layer.close()


def test_a_layer_that_a_worker_has_mapped_for_writing_is_not_finished() -> None:
    layer = written(3)

    with mmap.mmap(layer.fd, PAGE_BYTES, mmap.MAP_SHARED), pytest.raises(LayerError, match="EBUSY"):
        layer.finish(MEMORY_BYTES)
    layer.close()


@pytest.mark.parametrize("size_bytes", [MEMORY_BYTES + WASM_PAGE_BYTES, MEMORY_BYTES - PAGE_BYTES])
def test_a_layer_of_a_size_that_no_memory_has_is_not_finished(size_bytes: int) -> None:
    """Its size is what a worker made of it."""
    layer = LayerFile()
    os.ftruncate(layer.fd, size_bytes)

    with pytest.raises(LayerError, match=str(size_bytes)):
        layer.finish(MEMORY_BYTES)
    layer.close()


def test_merged_layers_hold_what_they_held_together() -> None:
    lower, upper = finished(1, 2, byte=b"l"), finished(2, 5, byte=b"u")

    whole = layers.merged([lower, upper])

    assert first_bytes(whole, 6) == b"\0lu\0\0u"
    assert whole.memory_bytes == MEMORY_BYTES
    with pytest.raises(PermissionError):
        os.pwrite(whole.fd, b"y", 0)
    for layer in (lower, upper, whole):
        layer.close()


def test_a_stored_layer_comes_back(store: LayerStore) -> None:
    layer = finished(0, 1, 7, 900)

    stored, size_bytes = store.store(layer, FOLDER)
    back = store.load(stored, MEMORY_BYTES, key_of(stored, FOLDER))

    assert stored.data_bytes == 4 * PAGE_BYTES
    assert 0 < size_bytes < stored.data_bytes
    assert size_bytes == store.size_bytes(key_of(stored, FOLDER))
    assert os.pread(back.fd, MEMORY_BYTES, 0) == os.pread(layer.fd, MEMORY_BYTES, 0)
    assert back.data_bytes == layer.data_bytes
    with pytest.raises(PermissionError):
        os.pwrite(back.fd, b"y", 0)
    layer.close()
    back.close()


def test_equal_content_has_an_equal_name(store: LayerStore) -> None:
    some = [finished(1, 2), finished(1, 2), finished(1, 3)]

    one, same, other = [store.store(layer, FOLDER)[0] for layer in some]

    assert one == same
    assert one != other
    for layer in some:
        layer.close()


def damaged(data: bytes, stored: StoredLayer) -> dict[str, bytes]:
    content = zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 24)
    run = 16 + 8
    pages_out_of_place = {
        "beyond the memory": (MEMORY_BYTES, MEMORY_BYTES + PAGE_BYTES),
        "not on a page": (7, 7 + PAGE_BYTES),
        "backwards": (2 * PAGE_BYTES, PAGE_BYTES),
        "longer than announced": (0, 2 * PAGE_BYTES),
        "of no length": (PAGE_BYTES, PAGE_BYTES),
    }
    changed = {
        what: content[:run]
        + low.to_bytes(8, "little")
        + high.to_bytes(8, "little")
        + content[run + 16 :]
        for what, (low, high) in pages_out_of_place.items()
    }
    changed["another form"] = b"nothing we know.." + content[17:]
    changed["a memory too large"] = (
        content[:16] + (MEMORY_BYTES + WASM_PAGE_BYTES).to_bytes(8, "little") + content[24:]
    )
    changed["another page"] = content[:-1] + b"y"
    changed["cut off"] = content[:-1]
    compress = zstandard.ZstdCompressor().compress
    return {what: compress(content) for what, content in changed.items()} | {
        "not compressed": content,
        "cut off while compressed": data[:-3],
        "empty": b"",
        "a bomb": compress(content[:-PAGE_BYTES] + b"x" * (1 << 24)),
    }


def test_a_stored_layer_that_is_damaged_is_refused(store: LayerStore, tmp_path: Path) -> None:
    """Whoever can write to the object store must not reach beyond a guest's memory, nor make us
    unpack more than the layer says that it has."""
    layer = finished(1)
    stored, _ = store.store(layer, FOLDER)
    layer.close()
    path = tmp_path / key_of(stored, FOLDER)
    for what, data in damaged(path.read_bytes(), stored).items():
        if what == "a bomb":
            continue
        path.write_bytes(data)
        with pytest.raises(LayerDamagedError):
            store.load(stored, MEMORY_BYTES, key_of(stored, FOLDER))
            pytest.fail(what)


def test_no_more_is_unpacked_than_a_layer_says(store: LayerStore, tmp_path: Path) -> None:
    layer = finished(1)
    stored, _ = store.store(layer, FOLDER)
    layer.close()
    path = tmp_path / key_of(stored, FOLDER)
    path.write_bytes(damaged(path.read_bytes(), stored)["a bomb"])

    back = store.load(stored, MEMORY_BYTES, key_of(stored, FOLDER))

    assert back.data_bytes == PAGE_BYTES
    back.close()


def test_a_missing_layer_is_damage(store: LayerStore) -> None:
    stored = StoredLayer(digest="0" * 64, data_bytes=0)

    with pytest.raises(LayerDamagedError, match="missing"):
        store.load(stored, MEMORY_BYTES, key_of(stored, FOLDER))
    assert store.size_bytes(key_of(stored, FOLDER)) is None


async def test_a_copy_shares_the_pages_and_each_goes_on_apart(store: LayerStore) -> None:
    memory = SessionMemory.new()
    os.ftruncate(memory.fds[-1], MEMORY_BYTES)
    os.pwrite(memory.fds[-1], b"x" * PAGE_BYTES, 0)

    assert memory.finish(MEMORY_BYTES)
    copy = memory.shared()
    await copy.bring_back(store, MEMORY_BYTES)

    assert copy.fds[:-1] == memory.fds[:-1]
    assert copy.fds[-1] != memory.fds[-1]
    assert copy.memory_bytes == MEMORY_BYTES
    await memory.close(store)
    assert os.pread(copy.fds[0], 1, 0) == b"x"
    await copy.close(store)


async def test_an_empty_layer_is_not_finished(store: LayerStore) -> None:
    """Forks one after the other add no layers."""
    memory = SessionMemory.new()

    assert not memory.finish(MEMORY_BYTES)
    assert len(memory.fds) == 1
    await memory.close(store)


async def test_many_layers_become_one_and_contexts_are_left_out(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that grows with each checkpoint would make each stop slower."""
    monkeypatch.setattr("sandbox_service.layers.LARGE_BYTES", 8 * PAGE_BYTES)
    memory = SessionMemory.new()
    await write_and_finish(memory, range(8), b"c")
    for i in range(LAYERS_MAX - 1):
        await write_and_finish(memory, range(i, i + 2), b"%d" % i)
        assert not await memory.merge(store)
    contexts = memory.fds[0]
    await write_and_finish(memory, range(20, 21), b"e")

    assert await memory.merge(store)

    assert memory.fds[0] == contexts
    assert len(memory.fds) == 3
    firsts = [os.pread(memory.fds[1], 1, page * PAGE_BYTES) for page in range(21)]
    assert b"".join(firsts) == b"01234566" + bytes(12) + b"e"
    await memory.close(store)


async def test_layers_that_hold_everything_twice_are_merged(store: LayerStore) -> None:
    """Else a few of them could take many times the session's memory."""
    memory = SessionMemory.new()
    everything = range(MEMORY_BYTES // PAGE_BYTES)
    for byte in (b"a", b"b"):
        await write_and_finish(memory, everything, byte)
        assert not await memory.merge(store)
    await write_and_finish(memory, range(1), b"c")

    assert await memory.merge(store)
    assert len(memory.fds) == 2
    await memory.close(store)


async def test_evicted_layers_leave_memory_and_come_back(store: LayerStore, tmp_path: Path) -> None:
    memory = SessionMemory.new()
    await write_and_finish(memory, range(2), b"x")

    await memory.spill(store)
    memory.leave()
    assert not memory.files()
    assert len(list((tmp_path / "evicted").iterdir())) == 1
    await memory.bring_back(store, MEMORY_BYTES)

    assert os.pread(memory.fds[0], 1, PAGE_BYTES) == b"x"
    await memory.close(store)
    assert not list((tmp_path / "evicted").iterdir())


async def test_what_a_copy_still_needs_stays_stored(store: LayerStore, tmp_path: Path) -> None:
    memory = SessionMemory.new()
    await write_and_finish(memory, range(2), b"x")
    copy = memory.shared()
    for each in (memory, copy):
        await each.spill(store)
        each.leave()
    assert len(list((tmp_path / "evicted").iterdir())) == 1

    await memory.close(store)
    await copy.bring_back(store, MEMORY_BYTES)

    assert os.pread(copy.fds[0], 1, 0) == b"x"
    await copy.close(store)


async def test_a_checkpoint_outlives_the_session_and_what_was_evicted_of_it(
    store: LayerStore, tmp_path: Path
) -> None:
    memory = SessionMemory.new()
    await write_and_finish(memory, range(2), b"x")
    await memory.spill(store)

    ((stored, size_bytes),) = await memory.keep(store, FOLDER)
    await memory.close(store)

    assert size_bytes == (tmp_path / key_of(stored, FOLDER)).stat().st_size
    assert not list((tmp_path / "evicted").iterdir())


async def test_a_layer_is_stored_once_for_all_checkpoints(
    store: LayerStore, tmp_path: Path
) -> None:
    memory = SessionMemory.new()
    await write_and_finish(memory, range(2), b"x")
    first = await memory.keep(store, FOLDER)
    (path,) = (tmp_path / "checkpoints/layers").iterdir()
    made = path.stat().st_mtime_ns
    await write_and_finish(memory, range(4, 5), b"y")

    second = await memory.keep(store, FOLDER)

    assert second[0] == first[0]
    assert len(second) == 2
    assert path.stat().st_mtime_ns == made
    path.unlink()
    assert await memory.keep(store, FOLDER) == second
    assert path.exists()
    await memory.close(store)


async def test_owners_of_checkpoints_share_no_layer(store: LayerStore, tmp_path: Path) -> None:
    """What one of them has is deleted without asking who else needs it."""
    memory = SessionMemory.new()
    await write_and_finish(memory, range(2), b"x")

    stored = [await memory.keep(store, f"checkpoints/of/{owner}") for owner in ("a", "b")]

    assert stored[0] == stored[1]
    assert len(list(tmp_path.glob("checkpoints/of/*/layers/*"))) == 2
    await memory.close(store)


async def test_a_layer_that_cannot_be_loaded_leaves_nothing_behind(store: LayerStore) -> None:
    gone = StoredLayer(digest="0" * 64, data_bytes=0)
    layer = finished(1)
    stored, _ = store.store(layer, FOLDER)
    layer.close()
    memory = SessionMemory(
        [Layer(None, each, key_of(each, FOLDER)) for each in (stored, gone)], MEMORY_BYTES
    )

    with pytest.raises(LayerDamagedError):
        await memory.bring_back(store, MEMORY_BYTES)

    assert not memory.is_resident
    await memory.close(store)


async def test_what_cannot_be_removed_does_not_keep_a_session_from_ending(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = SessionMemory.new()
    await write_and_finish(memory, range(1), b"x")
    await memory.spill(store)

    def refuse(_key: str) -> None:
        raise ObjectError("no")

    monkeypatch.setattr(store, "delete", refuse)
    await memory.close(store)

    assert "stays in the object store" in caplog.text


async def write_and_finish(memory: SessionMemory, pages: range, byte: bytes) -> None:
    """Do what a worker does with a cell's changes, and finish the layer."""
    top = memory.fds[-1]
    os.ftruncate(top, MEMORY_BYTES)
    os.pwrite(top, byte * (len(pages) * PAGE_BYTES), pages.start * PAGE_BYTES)
    assert memory.finish(MEMORY_BYTES)


async def test_a_layer_stays_as_it_is_where_there_is_no_file_for_the_next(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the worker would go on writing to a layer that nobody may write to."""
    memory = SessionMemory.new()
    os.ftruncate(memory.fds[-1], MEMORY_BYTES)
    os.pwrite(memory.fds[-1], b"x", 0)

    def refuse() -> LayerFile:
        raise OSError("too many open files")

    with monkeypatch.context() as without_files:
        without_files.setattr("sandbox_service.session_memory.LayerFile", refuse)
        with pytest.raises(OSError, match="too many"):
            memory.finish(MEMORY_BYTES)

    assert len(memory.fds) == 1
    os.pwrite(memory.fds[-1], b"y", 0)
    assert memory.finish(MEMORY_BYTES)
    await memory.close(store)

"""The memory of one session on the supervisor's side: finished layers, shared, and a top one.

Finished layers are held in common by a session and its forks. Each is in memory, in the object
store, or both; it is in memory for as long as one of its sessions wants it there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from sandbox_service import layers
from sandbox_service.layer_store import LayerStore, StoredLayer, key_of
from sandbox_service.layers import LayerFile
from sandbox_service.objects import ObjectError

_log = logging.getLogger(__name__)
_SPILLED = "evicted/"
"""What keys begin with of layers that are stored for as long as a session holds them."""


class Layer:
    """A finished layer, shared by sessions."""

    def __init__(
        self, file: LayerFile | None, stored: StoredLayer | None = None, key: str = ""
    ) -> None:
        """Take over a file that one session wants in memory, or name one that is stored."""
        self._file = file
        self._stored = stored
        self._key = key
        self._holders = 1
        self._pins = 1 if file is not None else 0
        self._lock = asyncio.Lock()

    @property
    def file(self) -> LayerFile:
        """Its pages; only while it is pinned."""
        if self._file is None:
            raise RuntimeError("the layer is not in memory")
        return self._file

    def hold(self) -> None:
        """Count one more session."""
        self._holders += 1

    async def release(self, store: LayerStore) -> None:
        """Count one session less; with the last one goes what was stored for them alone."""
        self._holders -= 1
        if not self._holders and self._is_spilled:
            await _removed(store, self._key)

    async def pin(self, store: LayerStore, memory_bytes_max: int) -> None:
        """Have it in memory until `unpin`; raises LayerDamagedError or ObjectError."""
        async with self._lock:
            if self._file is None:
                if self._stored is None:
                    raise RuntimeError("the layer is nowhere")
                self._file = await asyncio.to_thread(
                    store.load, self._stored, memory_bytes_max, self._key
                )
            self._pins += 1

    def pin_again(self) -> None:
        """Pin a layer that is pinned already."""
        self._pins += 1

    def unpin(self) -> None:
        """Let it go from memory, where nobody else wants it there."""
        self._pins -= 1
        if not self._pins and self._file is not None:
            self._file.close()
            self._file = None

    async def keep(self, store: LayerStore, folder: str) -> tuple[StoredLayer, int]:
        """Have it in a folder of checkpoints, while it is pinned; returns what it is and its size
        there.

        Raises ObjectError.
        """
        async with self._lock:
            if self._stored is not None:
                key = key_of(self._stored, folder)
                known_bytes = await asyncio.to_thread(store.size_bytes, key)
                if known_bytes is not None:
                    await self._move(store, key)
                    return self._stored, known_bytes
            stored, size_bytes = await asyncio.to_thread(store.store, self.file, folder)
            self._stored = stored
            await self._move(store, key_of(stored, folder))
            return stored, size_bytes

    async def spill(self, store: LayerStore) -> None:
        """Store it for as long as a session holds it, while it is pinned; raises ObjectError."""
        async with self._lock:
            if self._stored is None:
                key = f"{_SPILLED}{secrets.token_hex(16)}"
                self._stored = await asyncio.to_thread(store.store_as, self.file, key)
                self._key = key

    @property
    def _is_spilled(self) -> bool:
        return self._key.startswith(_SPILLED)

    async def _move(self, store: LayerStore, key: str) -> None:
        """Take it from another key from here on."""
        former, self._key = self._key, key
        if former.startswith(_SPILLED):
            await _removed(store, former)


class SessionMemory:
    """What a session's memory holds besides its warm image; used by one caller at a time."""

    def __init__(self, finished: Sequence[Layer] = (), memory_bytes: int = 0) -> None:
        """Take over finished layers, lowest first: held for it, and pinned all or none."""
        self.memory_bytes = memory_bytes
        """Size of the linear memory that the finished layers belong to."""
        self._finished = list(finished)
        self._top: LayerFile | None = None
        self._is_pinned = False

    @classmethod
    def new(cls) -> SessionMemory:
        """Return the memory of a session that begins as its warm image."""
        memory = cls()
        memory._top, memory._is_pinned = LayerFile(), True
        return memory

    @property
    def is_resident(self) -> bool:
        """Whether it can be handed to a worker."""
        return self._top is not None

    @property
    def fds(self) -> list[int]:
        """The layers as a worker gets them: finished ones, lowest first, then the top."""
        if self._top is None:
            raise RuntimeError("the session is not in memory")
        return [*(layer.file.fd for layer in self._finished), self._top.fd]

    def files(self) -> list[LayerFile]:
        """Return the layers that it has in memory, those shared with others included."""
        finished = [layer.file for layer in self._finished] if self._is_pinned else []
        return [*finished, self._top] if self._top is not None else finished

    @property
    def holds_contexts(self) -> bool:
        """Whether the only layer is one that is better finished: contexts were just loaded."""
        if self._top is None or self._finished:
            return False
        return self._top.data_bytes >= layers.LARGE_BYTES

    def finish(self, memory_bytes_max: int) -> bool:
        """Finish the top layer and put an empty one in its place, where it is not empty.

        Returns whether the layers are others than before. At rest only. Raises LayerError.
        """
        if self._top is None or not self._top.data_bytes:
            return False
        following = LayerFile()  # first: where there is none, nothing is to be changed
        try:
            self._top.finish(memory_bytes_max)
            self.memory_bytes = max(self.memory_bytes, self._top.memory_bytes)
            following.resize(self.memory_bytes)
        except BaseException:
            following.close()
            raise
        self._finished.append(Layer(self._top))
        self._top = following
        return True

    async def merge(self, store: LayerStore) -> bool:
        """Make one layer of many, contexts left out; returns whether the layers are others."""
        if not self._is_pinned or not layers.is_many([layer.file for layer in self._finished]):
            return False
        kept = 1 if self._finished[0].file.data_bytes >= layers.LARGE_BYTES else 0
        many = self._finished[kept:]
        merged = await asyncio.to_thread(layers.merged, [layer.file for layer in many])
        self._finished[kept:] = [Layer(merged)]
        for layer in many:
            layer.unpin()
            await layer.release(store)
        return True

    def shared(self) -> SessionMemory:
        """Return the same memory for another session; only right after `finish`."""
        copy = SessionMemory(self._finished, self.memory_bytes)
        for layer in self._finished:
            layer.hold()
            if self._is_pinned:
                layer.pin_again()
        copy._is_pinned = self._is_pinned
        return copy

    async def bring_back(self, store: LayerStore, memory_bytes_max: int) -> None:
        """Have all layers in memory, with an empty top one.

        Raises LayerDamagedError or ObjectError.
        """
        if not self._is_pinned:
            pinned: list[Layer] = []
            try:
                for layer in self._finished:
                    await layer.pin(store, memory_bytes_max)
                    pinned.append(layer)
            except BaseException:
                for layer in pinned:
                    layer.unpin()
                raise
            self._is_pinned = True
        if self._top is None:
            self._top = LayerFile(self.memory_bytes)

    async def keep(self, store: LayerStore, folder: str) -> list[tuple[StoredLayer, int]]:
        """Have the finished layers in a folder of checkpoints; returns each with its size there.

        Raises ObjectError.
        """
        return [await layer.keep(store, folder) for layer in self._finished]

    async def spill(self, store: LayerStore) -> None:
        """Store the finished layers for as long as sessions hold them; raises ObjectError."""
        for layer in self._finished:
            await layer.spill(store)

    def leave(self) -> None:
        """Give the memory back; the finished layers are stored."""
        if self._top is not None:
            self._top.close()
            self._top = None
        if self._is_pinned:
            self._is_pinned = False
            for layer in self._finished:
                layer.unpin()

    async def close(self, store: LayerStore) -> None:
        """Give back the memory and what was stored for this session alone."""
        self.leave()
        while self._finished:
            await self._finished.pop().release(store)


async def _removed(store: LayerStore, key: str) -> None:
    try:
        await asyncio.to_thread(store.delete, key)
    except ObjectError as error:
        _log.warning("what nobody needs any more stays in the object store: %s: %s", key, error)

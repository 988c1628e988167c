"""Layers in the object store: their pages with their places, compressed, named by their content.

What comes out of the store is checked: its form, its bounds, and the digest of its content.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Annotated, BinaryIO

import zstandard
from msgspec import Meta, Struct

from sandbox_service.guest_memory import WASM_PAGE_BYTES
from sandbox_service.layers import LayerFile
from sandbox_service.objects import ObjectMissingError, ObjectStore, ObjectWriter
from sandbox_service.sparse_files import PAGE_BYTES, extents, write_whole

_HEAD = struct.Struct("<16sQ")
"""Form of the content, and the size of the memory."""
_FORM = b"fathom layer 1\n\0"
_RUN = struct.Struct("<QQ")
"""Start and end of a run of pages; the pages follow."""
_PIECE_BYTES = 1 << 20
_LEVEL = 1
"""Memory of programs compresses well at any level, and this one keeps up with a disk."""
_WINDOW_BYTES_MAX = 8 << 20

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class LayerDamagedError(Exception):
    """What is stored is no layer, or not the one that it should be."""


class StoredLayer(Struct, frozen=True, kw_only=True):
    """A layer in the object store."""

    digest: Digest
    """SHA-256 of the content, uncompressed."""
    data_bytes: Annotated[int, Meta(ge=0, le=4 << 30, multiple_of=PAGE_BYTES)]
    """Size of its pages."""


class LayerStore:
    """Layers by key; the calls block."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def store(self, layer: LayerFile, folder: str) -> tuple[StoredLayer, int]:
        """Store a finished layer in a folder of checkpoints, named by its content; returns what it
        is and its compressed size in bytes. Raises ObjectError.
        """
        with self._objects.writer() as writer:
            packing = _Packing(writer)
            stored = packing.pack(layer)
            writer.commit(key_of(stored, folder))
        return stored, packing.written_bytes

    def store_as(self, layer: LayerFile, key: str) -> StoredLayer:
        """Store a finished layer under a key of its own; raises ObjectError."""
        with self._objects.writer() as writer:
            stored = _Packing(writer).pack(layer)
            writer.commit(key)
        return stored

    def load(self, stored: StoredLayer, memory_bytes_max: int, key: str) -> LayerFile:
        """Return a stored layer, finished.

        Raises LayerDamagedError or ObjectError.
        """
        layer = LayerFile()
        try:
            fd = self._objects.open(key)
            with os.fdopen(fd, "rb") as file:
                _unpack(file, stored, layer, memory_bytes_max)
            layer.finish(memory_bytes_max)
        except ObjectMissingError as error:
            layer.close()
            raise LayerDamagedError("a layer is missing") from error
        except BaseException:
            layer.close()
            raise
        return layer

    def size_bytes(self, key: str) -> int | None:
        """Return the compressed size of a layer, None where it is not there; raises
        ObjectError."""
        try:
            fd = self._objects.open(key)
        except ObjectMissingError:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def delete(self, key: str) -> None:
        """Remove a layer that was stored under a key of its own; raises ObjectError."""
        self._objects.delete(key)


def key_of(stored: StoredLayer, folder: str) -> str:
    """Return the key of a layer that is named by its content, in a folder of checkpoints."""
    return f"{folder}/layers/{stored.digest}"


class _Packing:
    def __init__(self, writer: ObjectWriter) -> None:
        self.written_bytes = 0
        self._writer = writer
        self._digest = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()

    def pack(self, layer: LayerFile) -> StoredLayer:
        data_bytes = 0
        self._put(_HEAD.pack(_FORM, layer.memory_bytes))
        for low, high in extents(layer.fd):
            self._put(_RUN.pack(low, high))
            for start in range(low, high, _PIECE_BYTES):
                self._put(os.pread(layer.fd, min(_PIECE_BYTES, high - start), start))
            data_bytes += high - low
        self._write(self._compressor.flush())
        return StoredLayer(digest=self._digest.hexdigest(), data_bytes=data_bytes)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._write(self._compressor.compress(data))

    def _write(self, data: bytes) -> None:
        if data:
            self.written_bytes += self._writer.write(data)


def _unpack(file: BinaryIO, stored: StoredLayer, layer: LayerFile, memory_bytes_max: int) -> None:
    """Write a stored layer's pages to an empty one; no more than it says there are."""
    content = _Content(file)
    form, memory_bytes = _HEAD.unpack(content.read(_HEAD.size))
    if form != _FORM:
        raise LayerDamagedError("a layer of another form")
    if memory_bytes > memory_bytes_max or memory_bytes % WASM_PAGE_BYTES:
        raise LayerDamagedError(f"a layer for a memory of {memory_bytes} bytes")
    os.ftruncate(layer.fd, memory_bytes)
    left, position = stored.data_bytes, 0
    while left:
        low, high = _RUN.unpack(content.read(_RUN.size))
        is_in_order = position <= low < high <= memory_bytes
        if not is_in_order or low % PAGE_BYTES or high % PAGE_BYTES or high - low > left:
            raise LayerDamagedError("a layer with pages out of place")
        for start in range(low, high, _PIECE_BYTES):
            piece = content.read(min(_PIECE_BYTES, high - start))
            write_whole(layer.fd, memoryview(piece), start)
        left, position = left - (high - low), high
    if content.digest() != stored.digest:
        raise LayerDamagedError("a layer of other content")


class _Content:
    """The uncompressed content of a stored layer, read in exact pieces."""

    def __init__(self, file: BinaryIO) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        self._reader = decompressor.stream_reader(file)
        self._digest = hashlib.sha256()

    def read(self, size_bytes: int) -> bytes:
        """Return so many bytes; raises LayerDamagedError where there are fewer."""
        pieces = []
        try:
            while size_bytes:
                piece = self._reader.read(size_bytes)
                if not piece:
                    raise LayerDamagedError("a layer is cut off")
                pieces.append(piece)
                size_bytes -= len(piece)
        except zstandard.ZstdError as error:
            raise LayerDamagedError("a layer does not decompress") from error
        data = b"".join(pieces)
        self._digest.update(data)
        return data

    def digest(self) -> str:
        """Return the digest of what was read."""
        return self._digest.hexdigest()

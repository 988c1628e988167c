"""Where a blob's characters and lines are: counts before each block, kept beside the blob.

A blob is cut into blocks at places where decoding may begin anew, so that decoding block by
block gives what `bytes.decode("utf-8", "replace")` gives for the whole. Readers take single
entries from the file; the index is never held in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Self

from sandbox_service import texts

BLOCK_BYTES = 64 << 10
_WINDOW_BLOCKS = 64
RESTART_BYTES = 3
"""Bytes after the first one that a UTF-8 sequence has at most."""
_HEADER = struct.Struct("<8sIIQQ")
_MAGIC, _VERSION = b"fathomtx", 1
_WELL_FORMED, _ASCII = 1, 2
_ENTRY = struct.Struct("<QQ")
"""Characters and line feeds before a block; one more entry stands for the end."""
_CHECK_BYTES = 1 << 20


class IndexFormatError(ValueError):
    """A file is not the whole index of such a blob."""


def block_count(size_bytes: int) -> int:
    """Return how many blocks a blob of this size has."""
    return -(-size_bytes // BLOCK_BYTES)


def index_size(size_bytes: int) -> int:
    """Return the bytes of the index of a blob of this size."""
    return _HEADER.size + _ENTRY.size * (block_count(size_bytes) + 1)


def restart_shift(following: bytes | bytearray) -> int:
    """Return how many bytes after a place decoding may begin anew; `following` starts there.

    Before a byte that begins a sequence it always may, and so it may after three that
    continue one, since no sequence is longer.
    """
    shift = 0
    while shift < min(RESTART_BYTES, len(following)) and following[shift] & 0xC0 == 0x80:
        shift += 1
    return shift


def build(fd: int, size_bytes: int, target: int) -> None:
    """Write the index of a blob to an empty file; raises texts.TextShapeError for a short blob."""
    checksum, flags = 0, _WELL_FORMED | _ASCII
    position = _HEADER.size
    for entries, window_flags in _scan(fd, size_bytes):
        flags &= window_flags
        checksum = zlib.crc32(entries, checksum)
        position += os.pwrite(target, entries, position)
    os.pwrite(target, _HEADER.pack(_MAGIC, _VERSION, flags, size_bytes, checksum), 0)
    if position != index_size(size_bytes):
        raise OSError("the index could not be written whole")


def _scan(fd: int, size_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield the entries of one window of blocks after another, and the window's flags."""
    characters = line_feeds = start = 0
    for number in range(0, block_count(size_bytes), _WINDOW_BLOCKS):
        end = min((number + _WINDOW_BLOCKS) * BLOCK_BYTES, size_bytes)
        data = texts.whole_range(fd, start, min(end + RESTART_BYTES, size_bytes) - start)
        is_ascii = data.isascii()
        flags = _WELL_FORMED | _ASCII if is_ascii else _WELL_FORMED
        entries = bytearray()
        low = 0
        for nominal in range(number * BLOCK_BYTES, end, BLOCK_BYTES):
            entries += _ENTRY.pack(characters, line_feeds)
            high = min(nominal + BLOCK_BYTES, size_bytes) - start
            if not is_ascii:
                high += restart_shift(data[high : high + RESTART_BYTES])
                counted, is_well_formed = _characters(data[low:high])
                characters += counted
                flags &= _WELL_FORMED if is_well_formed else 0
            else:
                characters += high - low
            line_feeds += data.count(b"\n", low, high)
            low = high
        start += low
        yield bytes(entries), flags
    yield _ENTRY.pack(characters, line_feeds), _WELL_FORMED | _ASCII


def _characters(block: bytes) -> tuple[int, bool]:
    if block.isascii():
        return len(block), True
    try:
        return len(block.decode()), True
    except UnicodeDecodeError:
        return len(block.decode("utf-8", "replace")), False


class TextIndex:
    """An index in an open file, of which single entries are read."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Read the header of the index of a blob of this size; raises IndexFormatError."""
        self._fd = fd
        self.size_bytes = size_bytes
        """Size of the blob."""
        if os.fstat(fd).st_size != index_size(size_bytes):
            raise IndexFormatError("an index of another size")
        header = os.pread(fd, _HEADER.size, 0)
        magic, version, flags, of_size, self._checksum = _HEADER.unpack(header)
        if (magic, version, of_size) != (_MAGIC, _VERSION, size_bytes):
            raise IndexFormatError("an index of another form, or of another blob")
        self.is_well_formed = bool(flags & _WELL_FORMED)
        """Whether the blob is UTF-8 without a malformed sequence."""
        self.blocks = block_count(size_bytes)
        """Number of its blocks."""
        self.is_ascii = bool(flags & _ASCII)
        """Whether every byte is a character."""

    @classmethod
    def checked(cls, fd: int, size_bytes: int) -> Self:
        """Return an index after reading the whole of it; raises IndexFormatError."""
        index = cls(fd, size_bytes)
        checksum, position = 0, _HEADER.size
        while data := os.pread(fd, _CHECK_BYTES, position):
            checksum = zlib.crc32(data, checksum)
            position += len(data)
        if checksum != index._checksum:
            raise IndexFormatError("a damaged index")
        return index

    def characters_before(self, block: int) -> int:
        """Return the characters of the blob before a block; of all for the block after the last."""
        return self._entry(block)[0]

    def line_feeds_before(self, block: int) -> int:
        """Return the line feeds of the blob before a block."""
        return self._entry(block)[1]

    def block_of_character(self, number: int, low: int, high: int) -> int:
        """Return the last of the blocks `low` to `high` with at most `number` characters before.

        It has the character of that number, counted from the start of the blob.
        """
        if self.is_ascii:
            return min(max(number // BLOCK_BYTES, low), high)
        blocks = range(low, high + 1)
        return low + max(bisect_right(blocks, number, key=self.characters_before) - 1, 0)

    def block_of_line_feed(self, number: int, low: int, high: int) -> int:
        """Return the last of the blocks `low` to `high` with fewer than `number` feeds before.

        It has the line feed of that number, counted from 1 at the start of the blob.
        """
        blocks = range(low, high + 1)
        return low + max(bisect_right(blocks, number - 1, key=self.line_feeds_before) - 1, 0)

    def _entry(self, block: int) -> tuple[int, int]:
        data = os.pread(self._fd, _ENTRY.size, _HEADER.size + block * _ENTRY.size)
        if len(data) != _ENTRY.size:
            raise IndexFormatError(f"the index has no block {block}")
        characters, line_feeds = _ENTRY.unpack(data)
        return int(characters), int(line_feeds)

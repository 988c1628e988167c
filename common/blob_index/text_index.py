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
from typing import Self

from common.blob_index.source import StoredSource

BLOCK_BYTES = 64 << 10
_WINDOW_BLOCKS = 16
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
    """Write the index of a blob to an empty file; raises UnindexableError for a short blob."""
    source, builder = StoredSource(fd, size_bytes), TextIndexBuilder()
    while data := source.read(_WINDOW_BLOCKS * BLOCK_BYTES):
        builder.feed(data)
    index = builder.finish()
    if os.pwrite(target, index, 0) != len(index):
        raise OSError("the index could not be written whole")


class TextIndexBuilder:
    """The index of a blob that streams by. It holds 16 bytes for each block, and a MiB."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._fed: list[bytes] = []
        self._fed_bytes = 0
        self._rest = b""
        self._start = 0
        """Byte of the blob at which the rest begins, a place where decoding may begin anew."""
        self._characters = 0
        self._line_feeds = 0
        self._flags = _WELL_FORMED | _ASCII

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        self._fed.append(data)
        self._fed_bytes += len(data)
        if self._fed_bytes >= _WINDOW_BLOCKS * BLOCK_BYTES:
            self._scan()

    @property
    def line_feeds(self) -> int:
        """Line feeds of the blob, once it is finished."""
        return self._line_feeds

    def finish(self) -> bytes:
        """Take the end, and return the whole index."""
        self._scan()
        rest, is_ascii = self._rest, self._rest.isascii()
        size_bytes = self._start + len(rest)
        low = 0
        # The last block may be empty, where decoding may begin anew only at the end.
        for _ in range(len(self._entries) // _ENTRY.size, block_count(size_bytes)):
            high = min(self._nominal_end() - self._start, len(rest) - low) + low
            if not is_ascii:
                high += restart_shift(rest[high : high + RESTART_BYTES])
            self._take(rest, low, high, is_ascii=is_ascii)
            low = high
        self._note()
        checksum = zlib.crc32(self._entries)
        head = _HEADER.pack(_MAGIC, _VERSION, self._flags, size_bytes, checksum)
        return head + self._entries

    def _scan(self) -> None:
        data = b"".join((self._rest, *self._fed))
        self._fed.clear()
        self._fed_bytes = 0
        is_ascii = data.isascii()
        self._flags &= _WELL_FORMED | _ASCII if is_ascii else _WELL_FORMED
        low = 0
        # A block ends when it is known where decoding may begin anew behind it.
        while (high := self._nominal_end()) + RESTART_BYTES <= self._start + len(data) - low:
            high -= self._start - low
            if not is_ascii:
                high += restart_shift(data[high : high + RESTART_BYTES])
            self._take(data, low, high, is_ascii=is_ascii)
            low = high
        self._rest = data[low:]

    def _nominal_end(self) -> int:
        return (len(self._entries) // _ENTRY.size + 1) * BLOCK_BYTES

    def _take(self, data: bytes, low: int, high: int, *, is_ascii: bool) -> None:
        """Note a block, the bytes from `low` to `high`."""
        self._note()
        if is_ascii:
            self._characters += high - low
        else:
            counted, is_well_formed = _characters(data[low:high])
            self._characters += counted
            self._flags &= _WELL_FORMED | _ASCII if is_well_formed else ~_WELL_FORMED
        self._line_feeds += data.count(b"\n", low, high)
        self._start += high - low

    def _note(self) -> None:
        self._entries += _ENTRY.pack(self._characters, self._line_feeds)


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

"""Where the items of a blob's large JSON arrays and objects are, kept beside the blob.

A table lists the items of one container. Table 0 has one item, the whole document. A container
that is too large to be parsed at once has a table of its own, which its entry names.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

from common.blob_index.text_index import IndexFormatError

Kind = Literal["array", "object"]
WHOLE = 0
"""An entry's child where the item is parsed as a whole."""
TOO_LARGE = (1 << 63) - 1
"""An entry's child where the item is a string too large to be parsed."""
_KINDS: tuple[Kind, ...] = ("array", "object")
_HEADER = struct.Struct("<8sIIQQ")
_MAGIC, _VERSION = b"fathomjs", 1
_TABLE = struct.Struct("<QQ")
"""A table's kind and its number of entries."""
_ENTRY = struct.Struct("<QQQQ")
TABLES_MAX = 100_000
"""Containers that are too large to be parsed at once."""


class Entry(NamedTuple):
    """One item of a container, by bytes of the blob."""

    key: int
    """Where its key begins; the same as `start` in an array."""
    start: int
    stop: int
    child: int
    """Number of the table of its own items; or WHOLE, or TOO_LARGE."""


@dataclass
class Table:
    """The items of one container, while they are being found."""

    kind: Kind
    """What the container is."""
    entries: array[int] = field(default_factory=lambda: array("Q"))
    """Four numbers for each item, as Entry has them."""


def write(tables: Sequence[Table], size_bytes: int, target: int) -> None:
    """Write the index of a blob of this size to an empty file."""
    directory = b"".join(
        _TABLE.pack(_KINDS.index(table.kind), len(table.entries) // 4) for table in tables
    )
    checksum = zlib.crc32(directory)
    position = _HEADER.size + os.pwrite(target, directory, _HEADER.size)
    for table in tables:
        data = memoryview(table.entries).cast("B")
        checksum = zlib.crc32(data, checksum)
        while data:
            written = os.pwrite(target, data, position)
            position, data = position + written, data[written:]
    header = _HEADER.pack(_MAGIC, _VERSION, len(tables), size_bytes, checksum)
    os.pwrite(target, header, 0)


class JsonIndex:
    """An index in an open file, of which single entries are read."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Read the tables' sizes of the index of a blob; raises IndexFormatError."""
        self._fd = fd
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) != _HEADER.size:
            raise IndexFormatError("an index without a header")
        magic, version, count, of_size, self._checksum = _HEADER.unpack(header)
        if (magic, version, of_size) != (_MAGIC, _VERSION, size_bytes) or count > TABLES_MAX:
            raise IndexFormatError("an index of another form, or of another blob")
        directory = os.pread(fd, count * _TABLE.size, _HEADER.size)
        self._tables: list[tuple[Kind, int, int]] = []
        position = _HEADER.size + count * _TABLE.size
        if len(directory) != count * _TABLE.size:
            raise IndexFormatError("an index that is cut short")
        for kind, entries in _TABLE.iter_unpack(directory):
            if kind >= len(_KINDS):
                raise IndexFormatError("a table of no known kind")
            self._tables.append((_KINDS[kind], entries, position))
            position += entries * _ENTRY.size
        if os.fstat(fd).st_size != position:
            raise IndexFormatError("an index of another size")

    @classmethod
    def checked(cls, fd: int, size_bytes: int) -> Self:
        """Return an index after reading the whole of it; raises IndexFormatError."""
        index = cls(fd, size_bytes)
        checksum, position = 0, _HEADER.size
        while data := os.pread(fd, 1 << 20, position):
            checksum = zlib.crc32(data, checksum)
            position += len(data)
        if checksum != index._checksum:
            raise IndexFormatError("a damaged index")
        return index

    def table(self, number: int) -> tuple[Kind, int]:
        """Return a container's kind and number of items; raises IndexError."""
        kind, count, _ = self._tables[number]
        return kind, count

    def entries(self, number: int, start: int, stop: int) -> list[Entry]:
        """Return the entries `start` to `stop` of a table; raises IndexError."""
        _, count, position = self._tables[number]
        start, stop = min(start, count), min(stop, count)
        size = max(stop - start, 0) * _ENTRY.size
        data = os.pread(self._fd, size, position + start * _ENTRY.size)
        if len(data) != size:
            raise IndexFormatError("an index that is cut short")
        return [Entry(*numbers) for numbers in _ENTRY.iter_unpack(data)]

"""The entries of a tar, plain or in gzip, gone through once from front to back.

The bytes are somebody else's. Python's own reader holds a header of any size, each key and name in
it as often as it is said, and takes the square of its length to read one of digits. What
is read here has a bound, an entry and in all. Sparse files and devices are named and not read.
"""

from __future__ import annotations

import dataclasses
import gzip
import tarfile
from pathlib import Path
from typing import IO, cast

HEADER_BYTES_MAX = 256 << 10
"""For names and attributes of one entry."""
HEADERS_BYTES_MAX = 256 << 20
"""For those of all entries."""
_BLOCK = tarfile.BLOCKSIZE
_GZIP = b"\x1f\x8b"
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_MORE_MAP = 482
"""Where the head of a sparse file says that its map goes on; in a block of the map it is"""
_MAP_MORE = 504


@dataclasses.dataclass(frozen=True)
class TarEntry:
    """One entry."""

    name: str
    """Its name, as it says."""
    size_bytes: int
    """Its size, as it says; negative where somebody says that."""
    kind: str
    """`file`, `folder`, `link`, `sparse` or `special`."""
    offset: int = 0
    """Where its bytes begin, in the unpacked tar."""


class TarEntries:
    """An open tar. Close it; raises tarfile.TarError and ValueError for what is none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._stream: IO[bytes] = self._file
            if self._file.read(len(_GZIP)) == _GZIP:
                self._stream = cast("IO[bytes]", gzip.GzipFile(fileobj=self._file))
            self._file.seek(0)
        except BaseException:
            self._file.close()
            raise
        self._headers_bytes = 0
        self._shared: dict[str, str] = {}
        """Attributes of all entries that follow."""
        self._next = 0
        """Where the next entry begins."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._file.close()

    def next(self) -> TarEntry | None:
        """Return the entry behind the last one, None at the end."""
        own: dict[str, str] = {}
        entry_bytes = 0
        while (head := self._head()) is not None:
            if head.type not in (*_PAX, *_LONG):
                return self._entry(head, self._shared | own)
            entry_bytes += head.size
            if not 0 <= entry_bytes <= HEADER_BYTES_MAX:
                raise tarfile.ReadError("a header is too long")
            data = self._header(head.size)
            if head.type == tarfile.XGLTYPE:
                self._shared |= _attributes(data)
            elif head.type in _PAX:
                own |= _attributes(data)
            elif head.type == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _text(data.partition(b"\0")[0])
        if own:
            raise tarfile.ReadError("it ends within an entry")
        return None

    def read(self, entry: TarEntry, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` of an entry's bytes, from `offset` on."""
        size_bytes = min(size_bytes, entry.size_bytes - offset)
        self._stream.seek(entry.offset + offset)
        data = self._stream.read(size_bytes)
        if len(data) < size_bytes:
            raise tarfile.ReadError("it ends within an entry")
        return data

    def _head(self) -> tarfile.TarInfo | None:
        if self._next:
            self._stream.seek(self._next - 1)
            if not self._stream.read(1):
                raise tarfile.ReadError("it ends within an entry")
        block = self._stream.read(_BLOCK)
        if (self._next or block) and not block.strip(b"\0"):
            return None
        self._count(_BLOCK)
        head = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        self._next += _BLOCK
        return head

    def _header(self, size_bytes: int) -> bytes:
        self._count(size_bytes)
        data = self._stream.read(_padded(size_bytes))
        if len(data) < size_bytes:
            raise tarfile.ReadError("it ends within an entry")
        self._next += _padded(size_bytes)
        return data[:size_bytes]

    def _count(self, size_bytes: int) -> None:
        self._headers_bytes += size_bytes
        if self._headers_bytes > HEADERS_BYTES_MAX:
            raise tarfile.ReadError("its headers are too long")

    def _entry(self, head: tarfile.TarInfo, attributes: dict[str, str]) -> TarEntry:
        """Return what a head says, and go behind it."""
        kind = _kind(head, attributes)
        if head.type == tarfile.GNUTYPE_SPARSE:
            self._pass_map()
        size = int(attributes.get("size", head.size))
        name = attributes.get("path", head.name).rstrip("/")
        entry = TarEntry(name, size, kind, self._next)
        has_bytes = head.isreg() or head.type not in tarfile.SUPPORTED_TYPES
        if has_bytes and size > 0:
            self._next += _padded(size)
        return entry

    def _pass_map(self) -> None:
        """Go behind the map of a sparse file, which is as long as it says."""
        self._stream.seek(self._next - _BLOCK)
        block, more = self._stream.read(_BLOCK), _MORE_MAP
        while len(block) == _BLOCK and block[more]:
            block, more = self._header(_BLOCK), _MAP_MORE


def _kind(head: tarfile.TarInfo, attributes: dict[str, str]) -> str:
    if head.type == tarfile.GNUTYPE_SPARSE or any(k.startswith("GNU.sparse.") for k in attributes):
        return "sparse"
    if head.isdir():
        return "folder"
    if head.issym() or head.islnk():
        return "link"
    return "file" if head.type in _FILES else "special"


def _attributes(data: bytes) -> dict[str, str]:
    """Return what is needed of lines `SIZE KEY=VALUE`; raises ValueError for what are none."""
    found: dict[str, str] = {}
    place = 0
    while place < len(data) and data[place]:
        digits = data[place : place + 8].partition(b" ")[0]
        end = place + int(digits)
        key, _, value = data[place + len(digits) + 1 : end - 1].partition(b"=")
        if end <= place + len(digits) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError("a header is damaged")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[_text(key[:32])] = _text(value)
        place = end
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK) * _BLOCK

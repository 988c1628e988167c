"""Archives as inputs: their members listed, judged and read as streams; nothing is ever unpacked.

An archive is somebody else's data: what it says of itself is bounded before it is believed. Names
that lead elsewhere, links and encrypted members are left out, and told.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol, Self, cast

from fathom_client.errors import FathomError
from fathom_client.figures import bytes_text

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MEMBERS_MAX = 100_000
EXPANDED_BYTES_MIN = 1 << 30
"""An archive may hold so much, however small it is, or"""
EXPANSION_MAX = 200
"""this many times its own size."""
_HEADER_BYTES_MAX = 2 << 20
"""What is read of a tar at a time, and in all for an entry's header: it may claim any size, and is
read as a whole."""
_BOUNDED = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""What a zip's members are unpacked from piece by piece; of bzip2 and LZMA, Python's reader holds
all that the bytes at hand come to."""
_NAME_CHARACTERS_MAX = 1_000
_GZIP = b"\x1f\x8b"
_FOLDER = "folder"
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
    *(ValueError, LookupError, OverflowError, struct.error),
)
"""What the readers raise about bytes that are no archive, or of a kind that they cannot read."""


class ArchiveError(FathomError):
    """A file is no archive that can be read, or holds more than it may."""


@dataclasses.dataclass(frozen=True)
class ArchiveMember:
    """One entry of an archive."""

    number: int
    """Its place among all entries: names may be there twice."""
    name: str
    """Its path in the archive, with forward slashes."""
    size_bytes: int
    """Its size, unpacked."""
    skipped: str = ""
    """Why it is left out, in one word; empty for one to read."""


class _Reader(Protocol):
    """An open archive of one kind."""

    def member(self, number: int) -> ArchiveMember | None:
        """Return an entry, None behind the last one; folders are skipped as such."""

    def open(self, number: int) -> IO[bytes]: ...

    def close(self) -> None: ...


class Archive:
    """A zip or tar file, which is opened with its first use. Reading its members in order goes
    through it once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where it is."""
        self._reader: _Reader | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def members(self) -> Iterator[ArchiveMember]:
        """Yield what is in it but for folders; raises ArchiveError or OSError."""
        room = max(EXPANDED_BYTES_MIN, EXPANSION_MAX * self.path.stat().st_size)
        try:
            number = 0
            while (member := self._opened().member(number)) is not None:
                if number >= MEMBERS_MAX:
                    raise ArchiveError(f"{self.path} has more than {MEMBERS_MAX:,} members")
                number += 1
                room -= member.size_bytes
                if member.size_bytes < 0:
                    raise ArchiveError(f"{self.path} has a member of a negative size")
                if room < 0:
                    raise ArchiveError(
                        f"{self.path} would unpack to far more than its"
                        f" {bytes_text(self.path.stat().st_size)}; unpack it and name the files"
                    )
                if member.skipped != _FOLDER:
                    yield _judged(member)
        except _DAMAGE as error:
            raise self._damage(error) from error

    def pieces(self, number: int, size_bytes: int) -> Iterator[bytes]:
        """Yield a member's bytes in pieces of a size; raises ArchiveError or OSError."""
        try:
            with self._opened().open(number) as stream:
                while data := stream.read(size_bytes):
                    yield data
        except _DAMAGE as error:
            raise self._damage(error) from error

    def _opened(self) -> _Reader:
        if self._reader is None:
            is_zip = self.path.name.lower().endswith(".zip")
            self._reader = _Zip(self.path) if is_zip else _Tar(self.path)
        return self._reader

    def _damage(self, error: Exception) -> ArchiveError:
        return ArchiveError(f"{self.path} cannot be read as an archive: {error}")


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is an archive."""
    return path.name.lower().endswith(_SUFFIXES)


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def member(self, number: int) -> ArchiveMember | None:
        if number >= len(self._zip.infolist()):
            return None
        info = self._zip.infolist()[number]
        skipped = "encrypted" if info.flag_bits & 1 else ""
        if info.compress_type not in _BOUNDED:
            skipped = "compression"
        if stat.S_ISLNK(info.external_attr >> 16):
            skipped = "link"
        if info.filename.endswith("/"):
            skipped = _FOLDER
        return ArchiveMember(number, info.filename, info.file_size, skipped)

    def open(self, number: int) -> IO[bytes]:
        return self._zip.open(self._zip.infolist()[number])

    def close(self) -> None:
        self._zip.close()


class _Tar:
    """Goes forward entry by entry: what lies behind is not believed to be bounded."""

    def __init__(self, path: Path) -> None:
        self._stream = _TarStream(path)
        try:
            self._tar = tarfile.open(fileobj=self._stream, mode="r:")  # noqa: SIM115  # by `close`
        except BaseException:
            self._stream.close()
            raise
        self._stream.header_left_bytes = None
        self._infos: list[tarfile.TarInfo] = []

    def member(self, number: int) -> ArchiveMember | None:
        info = self._info(number)
        if info is None:
            return None
        skipped = "" if info.isfile() else "link" if info.issym() or info.islnk() else "special"
        if info.isdir():
            skipped = _FOLDER
        return ArchiveMember(number, info.name, info.size, skipped)

    def open(self, number: int) -> IO[bytes]:
        info = self._info(number)
        stream = self._tar.extractfile(info) if info is not None else None
        if stream is None:
            raise IndexError("there is no such member")
        return stream

    def close(self) -> None:
        self._tar.close()
        self._stream.close()

    def _info(self, number: int) -> tarfile.TarInfo | None:
        while len(self._infos) <= number:
            self._stream.header_left_bytes = _HEADER_BYTES_MAX
            info = self._tar.next()
            self._stream.header_left_bytes = None
            if info is None:
                return None
            self._infos.append(info)
        return self._infos[number]


class _TarStream(io.RawIOBase):
    """The bytes of a tar, unpacked, of which no more are read at once than is good."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._bytes: IO[bytes] = self._file
        if self._file.read(len(_GZIP)) == _GZIP:
            self._bytes = cast("IO[bytes]", gzip.GzipFile(fileobj=self._file))
        self._file.seek(0)
        self.header_left_bytes: int | None = _HEADER_BYTES_MAX
        """What may still be read of an entry's header; None while members are read."""

    def read(self, size_bytes: int = -1, /) -> bytes:
        """Return the next bytes; raises TarError where they would be too many."""
        if self.header_left_bytes is not None:
            self.header_left_bytes -= size_bytes
        is_room_left = self.header_left_bytes is None or self.header_left_bytes >= 0
        if not is_room_left or not 0 <= size_bytes <= _HEADER_BYTES_MAX:
            raise tarfile.ReadError("a header is too long")
        return self._bytes.read(size_bytes)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""
        return self._bytes.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._bytes.tell()

    def close(self) -> None:
        """Close the file."""
        self._bytes.close()
        self._file.close()
        super().close()


def _judged(member: ArchiveMember) -> ArchiveMember:
    if member.skipped:
        return member
    path = PurePosixPath(member.name.replace("\\", "/"))
    is_odd = not path.parts or "\0" in member.name or len(member.name) > _NAME_CHARACTERS_MAX
    if is_odd or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return dataclasses.replace(member, size_bytes=0, skipped="unsafe")
    if any(part.startswith(".") for part in path.parts) or path.parts[0] == "__MACOSX":
        return dataclasses.replace(member, size_bytes=0, skipped="hidden")
    return member

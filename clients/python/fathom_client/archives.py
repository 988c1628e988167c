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
from fathom_client.tar_entries import TarEntries, TarEntry

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MEMBERS_MAX = 100_000
EXPANDED_BYTES_MIN = 1 << 30
"""An archive may hold so much, however small it is, or"""
EXPANSION_MAX = 200
"""this many times its own size."""
_DIRECTORY_BYTES_MAX = 64 << 20
"""What a zip's list of its members may have, at most."""
_BOUNDED = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""What a zip's members are unpacked from piece by piece; of bzip2 and LZMA, Python's reader holds
all that the bytes at hand come to."""
_NAME_CHARACTERS_MAX = 1_000
_ZIP_ENTRY = b"PK\1\2"
"""Begins each entry in a zip's directory."""
_FOLDER = "folder"
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(gzip.BadGzipFile, EOFError, NotImplementedError, RuntimeError),
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

    def pieces(self, number: int, size_bytes: int) -> Iterator[bytes]:
        """Yield an entry's bytes, at most so many at a time."""

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
            yield from self._opened().pieces(number, size_bytes)
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
        self._file = _ZipFile(path)
        try:
            self._zip = zipfile.ZipFile(cast("IO[bytes]", self._file))
        except BaseException:
            self._file.close()
            raise
        self._file.is_listed = True

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
        name = info.filename[: _NAME_CHARACTERS_MAX + 1]
        return ArchiveMember(number, name, info.file_size, skipped)

    def pieces(self, number: int, size_bytes: int) -> Iterator[bytes]:
        with self._zip.open(self._zip.infolist()[number]) as stream:
            while data := stream.read(size_bytes):
                yield data

    def close(self) -> None:
        self._zip.close()
        self._file.close()


class _ZipFile(io.FileIO):
    """A zip's bytes, of which Python's reader takes a directory of any length at once, and holds
    half a kilobyte for each entry of it."""

    is_listed = False
    """Whether the directory is read."""

    def read(self, size_bytes: int | None = -1, /) -> bytes:
        """Return the next bytes; raises ArchiveError for a directory of too much."""
        if self.is_listed:
            return super().read(size_bytes)
        is_long = size_bytes is not None and size_bytes > _DIRECTORY_BYTES_MAX
        data = b"" if is_long else super().read(size_bytes)
        if is_long or data.count(_ZIP_ENTRY) > MEMBERS_MAX:
            raise ArchiveError(f"{self.name} has more than {MEMBERS_MAX:,} members")
        return data


class _Tar:
    def __init__(self, path: Path) -> None:
        self._entries = TarEntries(path)
        self._met: list[TarEntry] = []

    def member(self, number: int) -> ArchiveMember | None:
        while len(self._met) <= number:
            entry = self._entries.next()
            if entry is None:
                return None
            name = entry.name[: _NAME_CHARACTERS_MAX + 1]
            self._met.append(dataclasses.replace(entry, name=name))
        entry = self._met[number]
        skipped = "" if entry.kind == "file" else entry.kind
        return ArchiveMember(number, entry.name, entry.size_bytes, skipped)

    def pieces(self, number: int, size_bytes: int) -> Iterator[bytes]:
        self.member(number)
        entry, offset = self._met[number], 0
        while data := self._entries.read(entry, offset, size_bytes):
            yield data
            offset += len(data)

    def close(self) -> None:
        self._entries.close()


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

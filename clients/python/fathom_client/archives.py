"""Archives as inputs: their members listed, judged and read as streams; nothing is ever unpacked.

An archive is somebody else's data: what it says of itself is bounded before it is believed. Names
that lead elsewhere, links and encrypted members are left out, and told.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol, Self

from fathom_client.errors import FathomError
from fathom_client.figures import bytes_text

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MEMBERS_MAX = 100_000
EXPANDED_BYTES_MIN = 1 << 30
"""An archive may hold so much, however small it is, or"""
EXPANSION_MAX = 200
"""this many times its own size."""
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
"""What the readers raise about bytes that are no archive, or of a kind that they cannot read."""


class ArchiveError(FathomError):
    """A file is no archive that can be read, or holds more than it may."""


@dataclass(frozen=True)
class ArchiveMember:
    """One entry of an archive, other than a folder."""

    name: str
    """Its path in the archive, with forward slashes."""
    size_bytes: int
    """Its size, unpacked."""
    skipped: str = ""
    """Why it is left out, in one word; empty for one to read."""


class _Reader(Protocol):
    """An open archive of one kind."""

    def members(self) -> Iterator[ArchiveMember]: ...

    def open(self, name: str) -> IO[bytes]: ...

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
        """Yield what is in it; raises ArchiveError or OSError."""
        room = max(EXPANDED_BYTES_MIN, EXPANSION_MAX * self.path.stat().st_size)
        try:
            for number, member in enumerate(self._opened().members()):
                if number >= MEMBERS_MAX:
                    raise ArchiveError(f"{self.path} has more than {MEMBERS_MAX:,} members")
                room -= member.size_bytes
                if room < 0:
                    raise ArchiveError(
                        f"{self.path} would unpack to far more than its"
                        f" {bytes_text(self.path.stat().st_size)}; unpack it and name the files"
                    )
                yield _judged(member)
        except _DAMAGE as error:
            raise self._damage(error) from error

    def pieces(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """Yield a member's bytes in pieces of a size; raises ArchiveError or OSError."""
        try:
            with self._opened().open(name) as stream:
                while data := stream.read(size_bytes):
                    yield data
        except (KeyError, *_DAMAGE) as error:
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

    def members(self) -> Iterator[ArchiveMember]:
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            mode = info.external_attr >> 16
            skipped = "link" if stat.S_ISLNK(mode) else "encrypted" if info.flag_bits & 1 else ""
            yield ArchiveMember(info.filename, info.file_size, skipped)

    def open(self, name: str) -> IO[bytes]:
        return self._zip.open(name)

    def close(self) -> None:
        self._zip.close()


class _Tar:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:*")  # noqa: SIM115  # closed by `close`

    def members(self) -> Iterator[ArchiveMember]:
        for info in self._tar:
            if info.isdir():
                continue
            skipped = "" if info.isfile() else "link" if info.issym() or info.islnk() else "special"
            yield ArchiveMember(info.name, info.size, skipped)

    def open(self, name: str) -> IO[bytes]:
        stream = self._tar.extractfile(name)
        if stream is None:
            raise KeyError(name)
        return stream

    def close(self) -> None:
        self._tar.close()


def _judged(member: ArchiveMember) -> ArchiveMember:
    path = PurePosixPath(member.name.replace("\\", "/"))
    if member.skipped:
        return member
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return ArchiveMember(member.name, 0, "unsafe")
    if any(part.startswith(".") for part in path.parts) or path.parts[0] == "__MACOSX":
        return ArchiveMember(member.name, 0, "hidden")
    return member

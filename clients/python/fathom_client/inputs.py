"""From what a person names to what is sent: which argument is the question, which files are text.

Nothing is sent here; `uploads.py` does that with the `Upload` made here.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fathom.orchestrator.v1 import context_pb2

from fathom_client.archives import Archive, ArchiveMember, is_archive
from fathom_client.directory_walk import Identity, identity_of, open_named, walk
from fathom_client.errors import FathomError
from fathom_client.figures import bytes_text, plural
from fathom_client.uploads import InputFile, Upload

STDIN = "-"
_SNIFFED_BYTES = 8192
_CHECKED_BYTES_MAX = 64 << 20
"""JSON of up to this size is checked before it is sent."""
_LOOKS_LIKE_FILE = re.compile(r"^(~|\.{0,2}/)|^\S*/\S*$|^\S*\.[A-Za-z][A-Za-z0-9]{0,4}$")
_GLOB_CHARACTERS = re.compile(r"[*?\[]")


class InputError(FathomError):
    """The arguments do not make one question over some data."""


@dataclass(frozen=True)
class Skipped:
    """Something that was named or found and is not sent."""

    path: str
    """Its path."""
    why: str
    """One word: `binary`, `ignored`, `hidden`, `link`, `special`, `deep` (in more than 200 folders)
    or `unreadable`; of members of an archive also `unsafe` (a name that leads out of it),
    `encrypted`, `sparse` or `compression` (of a kind that is not unpacked)."""


@dataclass(frozen=True)
class Inputs:
    """What is sent, and what is not."""

    upload: Upload
    """The files to send."""
    skipped: tuple[Skipped, ...]
    """What is left out, in the order it was met."""

    def describe(self) -> str:
        """Return the trust line's first half: `4 files, 41.2 MB, 1 skipped (binary)`."""
        parts = [plural(len(self.upload.files), "file"), bytes_text(self.upload.size_bytes)]
        reasons = Counter(entry.why for entry in self.skipped if entry.why != "ignored")
        if reasons:
            named = ", ".join(
                why if len(reasons) == 1 else f"{count} {why}" for why, count in reasons.items()
            )
            parts.append(f"{reasons.total():,} skipped ({named})")
        return ", ".join(parts)


def unicode_text(argument: str) -> str:
    """Return what the system gave as text that can be sent: bytes that are no UTF-8 as U+FFFD.

    Python keeps them as lone surrogates, which have no place in a message.
    """
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def split_question(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Tell the question from the paths: what exists is data, the one thing left is the question.

    `-` and globs that match count as existing. Raises InputError where none or several are left,
    and for an argument that looks like a path and is not there.
    """
    paths: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        (paths if _names_data(argument) else rest).append(argument)
    for argument in rest:
        if re.match(r"https?://\S+$", argument):
            raise InputError(f"web addresses are not read: {argument} (save it and name the file)")
    missing = [argument for argument in rest if _LOOKS_LIKE_FILE.search(argument)]
    if missing:
        raise InputError(
            f"no such file or directory: {missing[0]} (if this is the question: --question TEXT)"
        )
    if not rest:
        raise InputError(
            "no question: every argument is an existing path (name it with --question TEXT)"
        )
    if len(rest) > 1:
        raise InputError(
            f"two arguments are not paths: {rest[0]!r} and {rest[1]!r}; put the question in quotes"
        )
    return rest[0], paths


def read_inputs(
    paths: Sequence[str | Path],
    *,
    read_stdin: Callable[[], bytes] | None = None,
    as_json: bool = False,
    title: str = "",
    ttl_s: float | None = None,
) -> Inputs:
    """List what the paths hold, as one text, one JSON value or named documents.

    A path may be a file, a directory, a glob or `-`. Files that hold NUL bytes are no text and
    are skipped; a zip or tar file that is named, and not one in a directory, stands for its
    members. Raises InputError for a path that is not there, and where nothing is left, and
    ArchiveError.
    """
    listing = _Listing()
    for path in paths:
        if str(path) == STDIN:
            listing.add_bytes("stdin", _read_all(read_stdin))
        else:
            for found in _expand(str(path)):
                listing.add_path(found)
    if not listing.files:
        skipped = ", ".join(f"{entry.path} ({entry.why})" for entry in listing.skipped[:3])
        why = f"; skipped: {skipped}" if skipped else f": no file in {_title(paths)}"
        raise InputError(f"nothing to read{why}")
    if not any(file.size_bytes for file in listing.files):
        raise InputError(f"nothing to read: not one byte of text in {_title(paths)}")
    kind = context_pb2.Context.KIND_DOCUMENTS
    if as_json:
        _check_json(listing.files)
        kind = context_pb2.Context.KIND_JSON
    elif len(listing.files) == 1 and not listing.has_directory:
        kind = context_pb2.Context.KIND_TEXT
    title = unicode_text(title or _title(paths))[:256]
    upload = Upload(kind=kind, files=tuple(listing.files), title=title, ttl_s=ttl_s)
    return Inputs(upload, tuple(listing.skipped))


class _Listing:
    """Files and skipped entries met so far; a file that is met twice counts once."""

    def __init__(self) -> None:
        self.files: list[InputFile] = []
        self.skipped: list[Skipped] = []
        self.has_directory = False
        self._seen: set[Path] = set()
        self._names: set[str] = set()

    def add_path(self, path: Path) -> None:
        real = path.resolve()
        if real.is_file() and is_archive(real):
            self._add_archive(real, _name(path))
            return
        if not real.is_dir():
            # Read as it was named: what a pipe's link resolves to cannot be opened.
            self._add_file(path, _name(path), real)
            return
        self.has_directory = True
        # The walk speaks of resolved paths; names keep what the person typed.
        name = _name(path)
        for entry in walk(real):
            if entry.skipped:
                self.skipped.append(Skipped(str(entry.path), entry.skipped))
            else:
                relative = entry.path.relative_to(real).as_posix()
                self._add_file(
                    entry.path, f"{name}/{relative}", entry.path, identity=entry.identity
                )

    def _add_archive(self, real: Path, name: str) -> None:
        if real in self._seen:
            return
        self._seen.add(real)
        self.has_directory = True
        try:
            with Archive(real) as archive:
                for member in archive.members():
                    why = member.skipped or _archived_why(archive, member)
                    if why:
                        self.skipped.append(Skipped(f"{name}/{member.name}", why))
                        continue
                    self.files.append(
                        InputFile(
                            name=self._unique(f"{name}/{member.name}"),
                            size_bytes=member.size_bytes,
                            path=real,
                            archive=archive,
                            member=member.number,
                        )
                    )
        except OSError:
            self.skipped.append(Skipped(str(real), "unreadable"))

    def add_bytes(self, name: str, data: bytes) -> None:
        if _is_binary(data[:_SNIFFED_BYTES]):
            self.skipped.append(Skipped(name, "binary"))
        else:
            self.files.append(InputFile(name=self._unique(name), size_bytes=len(data), data=data))

    def _add_file(
        self, path: Path, name: str, real: Path, *, identity: Identity | None = None
    ) -> None:
        """Add a file, which is to be the one of an identity where that is given."""
        if real in self._seen:
            return
        self._seen.add(real)
        try:
            if identity is None and path.is_fifo():  # named by somebody who writes to it
                self.add_bytes(name, path.read_bytes())
                return
            with open_named(path) as stream:
                status = os.fstat(stream.fileno())
                why = "" if stat.S_ISREG(status.st_mode) else "special"
                if identity not in (None, identity_of(status)):
                    why = "unreadable"
                if not why and _is_binary(stream.read(_SNIFFED_BYTES)):
                    why = "binary"
        except OSError:
            why = "unreadable"
        if why:
            self.skipped.append(Skipped(str(path), why))
        else:
            self.files.append(
                InputFile(
                    name=self._unique(name),
                    size_bytes=status.st_size,
                    path=real,
                    identity=identity_of(status),
                )
            )

    def _unique(self, name: str) -> str:
        name = unicode_text(name)
        unique, number = name, 1
        while unique in self._names:
            number += 1
            unique = f"{name}#{number}"
        self._names.add(unique)
        return unique


def _names_data(argument: str) -> bool:
    if argument == STDIN:
        return True
    try:
        return bool(argument) and bool(_matches(argument))
    except (OSError, ValueError):
        # Too long for a name, or with a NUL: no path.
        return False


def _expand(path: str) -> list[Path]:
    found = _matches(path)
    if not found:
        raise InputError(f"no such file or directory: {path}")
    return found


def _matches(argument: str) -> list[Path]:
    path = Path(argument).expanduser()
    if path.exists():
        return [path]
    if not _GLOB_CHARACTERS.search(argument):
        return []
    return [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _name(path: Path) -> str:
    """Return a name relative to the working directory, or the last part of one outside of it."""
    absolute = Path.cwd() / path
    parts = [part for part in path.parts if part != "."]
    if not path.is_absolute() and ".." not in parts:
        return "/".join(parts) or absolute.resolve().name
    resolved = absolute.resolve()
    if resolved.is_relative_to(Path.cwd()):
        return resolved.relative_to(Path.cwd()).as_posix()
    return resolved.name


def _is_binary(head: bytes) -> bool:
    return b"\0" in head


def _archived_why(archive: Archive, member: ArchiveMember) -> str:
    head = next(archive.pieces(member.number, _SNIFFED_BYTES), b"")
    return "binary" if _is_binary(head) else ""


def _read_all(read_stdin: Callable[[], bytes] | None) -> bytes:
    if read_stdin is None:
        raise InputError("standard input is not to be had here")
    return read_stdin()


def _check_json(files: Sequence[InputFile]) -> None:
    if len(files) != 1:
        raise InputError(f"--json-input takes one file, {len(files)} were given")
    file = files[0]
    if file.size_bytes > _CHECKED_BYTES_MAX or file.archive:
        return  # the server checks it as it comes
    try:
        json.loads(file.path.read_bytes() if file.path else file.data)
    except ValueError as error:
        raise InputError(f"{file.name} is not JSON: {error}") from error


def _title(paths: Sequence[str | Path]) -> str:
    return ", ".join("standard input" if path == STDIN else str(path) for path in paths)

"""The files of a directory that a person would mean: not ignored by git, not hidden, no links.

Only names are looked at; what is inside the files is judged in `inputs.py`. A directory may be
somebody else's, and change meanwhile: what is entered is what was listed, or it is left out.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from fathom_client.errors import FathomError

DEPTH_MAX = 200
IGNORE_FILE_BYTES_MAX = 256 << 10
_WILDCARDS_MAX = 3
"""In one part of a rule, and `**` among its parts: each takes the time to match to a power more."""
_SEVERAL = re.compile(r"(?<!\\)\*{2,}")
_UNMENTIONED = frozenset({".git", ".gitignore"})
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""As git does not follow a link either; and nobody may ever write to a pipe."""

Identity = tuple[int, int]
"""Device and inode: whether two looks at a path were at the same file."""


class IgnoreFileError(FathomError):
    """A .gitignore is too long, or too hard to match: without it too much would be sent."""


@dataclass(frozen=True)
class WalkedPath:
    """One entry found in a directory."""

    path: Path
    """Where it is."""
    skipped: str = ""
    """Why it is left out, in one word; empty for a file to read."""
    identity: Identity = (0, 0)
    """Which file it is."""


@dataclass(frozen=True)
class _IgnoreFile:
    folder: Path
    spec: GitIgnoreSpec

    def decides(self, path: Path, *, is_directory: bool) -> bool | None:
        relative = path.relative_to(self.folder).as_posix() + ("/" if is_directory else "")
        return self.spec.check_file(relative).include


@dataclass(frozen=True)
class _Folder:
    """A directory to enter, as it was when it was listed."""

    path: Path
    identity: Identity
    outer: tuple[_IgnoreFile, ...]
    depth: int = 0


def identity_of(status: os.stat_result) -> Identity:
    """Return which file a status is of."""
    return status.st_dev, status.st_ino


def open_named(path: Path) -> IO[bytes]:
    """Open a file whose kind is looked at afterwards: without waiting for whoever writes to it."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123


def walk(folder: Path) -> Iterator[WalkedPath]:
    """Yield the entries below a resolved `folder`, sorted by name within each directory.

    A directory left out is one entry; what belongs to git itself yields nothing. Links
    are not followed, so a loop of them ends and nothing outside of `folder` is read.
    Raises OSError where `folder` itself cannot be listed, and IgnoreFileError.
    """
    outer = _ignore_files_above(folder)
    if _is_ignored(folder, outer, is_directory=True):
        # Named outright, so it is meant; rules about the folder itself would hide all of it.
        outer = ()
    levels = [_entries(_Folder(folder, identity_of(folder.stat()), outer))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, WalkedPath):
            yield entry
        elif entry.depth > DEPTH_MAX:
            yield WalkedPath(entry.path, "deep")
        else:
            try:
                levels.append(_entries(entry))
            except OSError:
                yield WalkedPath(entry.path, "unreadable")


def _entries(folder: _Folder) -> Iterator[WalkedPath | _Folder]:
    """List a directory; raises OSError where it cannot be, or is not the one that was meant."""
    descriptor = os.open(folder.path, _FOLDER_FLAGS)
    try:
        if identity_of(os.fstat(descriptor)) != folder.identity:
            raise FileNotFoundError(folder.path)
        ignore_files = folder.outer + _ignore_file_in(folder.path, descriptor)
        with os.scandir(descriptor) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        # Through the descriptor: by its path, each could be looked for in another directory.
        looks = [(entry.name, _status(entry)) for entry in ordered]
    finally:
        os.close(descriptor)
    return (
        _judged(folder, ignore_files, name, status)
        for name, status in looks
        if name not in _UNMENTIONED
    )


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:  # gone since
        return None


def _judged(
    folder: _Folder,
    ignore_files: tuple[_IgnoreFile, ...],
    name: str,
    status: os.stat_result | None,
) -> WalkedPath | _Folder:
    path = folder.path / name
    is_directory = status is not None and stat.S_ISDIR(status.st_mode)
    if _is_ignored(path, ignore_files, is_directory=is_directory):
        return WalkedPath(path, "ignored")
    if name.startswith("."):
        return WalkedPath(path, "hidden")
    if status is None:
        return WalkedPath(path, "unreadable")
    if is_directory:
        return _Folder(path, identity_of(status), ignore_files, folder.depth + 1)
    if stat.S_ISLNK(status.st_mode):
        return WalkedPath(path, "link")
    skipped = "" if stat.S_ISREG(status.st_mode) else "special"
    return WalkedPath(path, skipped, identity_of(status))


def _is_ignored(path: Path, ignore_files: tuple[_IgnoreFile, ...], *, is_directory: bool) -> bool:
    for ignore_file in reversed(ignore_files):
        decision = ignore_file.decides(path, is_directory=is_directory)
        if decision is not None:
            return decision
    return False


def _ignore_files_above(folder: Path) -> tuple[_IgnoreFile, ...]:
    """Return the ignore files of the parents, outermost first, up to the repository's root."""
    if (folder / ".git").exists():
        return ()
    for depth, parent in enumerate(folder.parents):
        if (parent / ".git").exists():
            chain = reversed(folder.parents[: depth + 1])
            return tuple(found for above in chain for found in _ignore_file_of(above))
    return ()


def _ignore_file_of(folder: Path) -> tuple[_IgnoreFile, ...]:
    try:
        descriptor = os.open(folder, _FOLDER_FLAGS)
    except OSError:
        return ()
    try:
        return _ignore_file_in(folder, descriptor)
    finally:
        os.close(descriptor)


def _ignore_file_in(folder: Path, descriptor: int) -> tuple[_IgnoreFile, ...]:
    """Return the ignore file of an open directory, if it has one."""
    try:
        with open(os.open(".gitignore", _FILE_FLAGS, dir_fd=descriptor), "rb") as stream:  # noqa: PTH123  # by its descriptor
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return ()
            data = stream.read(IGNORE_FILE_BYTES_MAX + 1)
    except OSError:
        return ()
    name = folder / ".gitignore"
    if len(data) > IGNORE_FILE_BYTES_MAX:
        raise IgnoreFileError(f"{name} has more than {IGNORE_FILE_BYTES_MAX >> 10} KiB of rules")
    return (_IgnoreFile(folder, _spec(name, data.decode(errors="replace"))),)


def _spec(name: Path, text: str) -> GitIgnoreSpec:
    rules = []
    for line in text.splitlines():
        parts = line.split("/")
        for number, part in enumerate(parts):
            if part != "**":  # else several are as one
                parts[number] = _SEVERAL.sub("*", part)
        if max(parts.count("**"), *(part.count("*") for part in parts)) > _WILDCARDS_MAX:
            raise IgnoreFileError(f"{name} has a rule of too many wildcards: {line[:80]}")
        try:
            rules.append(GitIgnoreSpecPattern("/".join(parts)))
        except (ValueError, re.error):
            continue  # as for git: a rule that is none matches nothing
    return GitIgnoreSpec(rules, backend="simple")

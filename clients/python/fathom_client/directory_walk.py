"""The files of a directory that a person would mean: not ignored by git, not hidden, no links.

Only names are looked at; what is inside the files is judged in `inputs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

_UNMENTIONED = frozenset({".git", ".gitignore"})


@dataclass(frozen=True)
class WalkedPath:
    """One entry found in a directory."""

    path: Path
    """Where it is."""
    skipped: str = ""
    """Why it is left out, in one word; empty for a file to read."""


@dataclass(frozen=True)
class _IgnoreFile:
    folder: Path
    spec: GitIgnoreSpec

    def decides(self, path: Path, *, is_directory: bool) -> bool | None:
        relative = path.relative_to(self.folder).as_posix() + ("/" if is_directory else "")
        return self.spec.check_file(relative).include


def walk(folder: Path) -> Iterator[WalkedPath]:
    """Yield the entries below a resolved `folder`, sorted by name within each directory.

    A directory left out is one entry; what belongs to git itself yields nothing. Links
    are not followed, so a loop of them ends and nothing outside of `folder` is read.
    """
    outer = _ignore_files_above(folder)
    if _is_ignored(folder, outer, is_directory=True):
        # Named outright, so it is meant; rules about the folder itself would hide all of it.
        outer = ()
    yield from _walk(folder, outer)


def _walk(folder: Path, outer: tuple[_IgnoreFile, ...]) -> Iterator[WalkedPath]:
    ignore_files = outer + _ignore_file_in(folder)
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = folder / entry.name
        if entry.name in _UNMENTIONED:
            continue
        is_directory = entry.is_dir(follow_symlinks=False)
        if _is_ignored(path, ignore_files, is_directory=is_directory):
            yield WalkedPath(path, "ignored")
        elif entry.name.startswith("."):
            yield WalkedPath(path, "hidden")
        elif entry.is_symlink():
            yield WalkedPath(path, "link")
        elif is_directory:
            yield from _enter(path, ignore_files)
        else:
            yield WalkedPath(path)


def _enter(folder: Path, ignore_files: tuple[_IgnoreFile, ...]) -> Iterator[WalkedPath]:
    try:
        yield from _walk(folder, ignore_files)
    except PermissionError:
        yield WalkedPath(folder, "unreadable")


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
            return tuple(found for above in chain for found in _ignore_file_in(above))
    return ()


def _ignore_file_in(folder: Path) -> tuple[_IgnoreFile, ...]:
    try:
        lines = (folder / ".gitignore").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    return (_IgnoreFile(folder, GitIgnoreSpec.from_lines(lines)),)

"""Recorded answers that are too large for a row: immutable bytes by key.

A file appears under its key whole or not at all, and has reached the disk when it does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Protocol

_KEY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial"
_SLACK_S = 3600.0
"""A file is put a moment before the row that names it."""


class AnswerStore(Protocol):
    """Where large answers are."""

    async def put(self, data: bytes) -> str:
        """Keep bytes and return their key, which is the same for equal bytes."""
        ...

    async def get(self, key: str) -> bytes:
        """Return the bytes; raises OSError or ValueError where they are gone or damaged."""
        ...

    async def forget(self, before_s: float) -> None:
        """Remove what was last put before a Unix time: no row names it any more."""
        ...


class FolderAnswerStore:
    """Answers as files of a folder, named by the digest of their content."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    async def put(self, data: bytes) -> str:
        """Write a file; one that is there already becomes as young as a new one."""
        return await asyncio.to_thread(self._put, data)

    async def get(self, key: str) -> bytes:
        """Read a file and check it."""
        if not _KEY.fullmatch(key):
            raise ValueError("it is no key")
        data = await asyncio.to_thread((self._folder / key).read_bytes)
        if _digest(data) != key:
            raise ValueError("the content is not what the key says")
        return data

    async def forget(self, before_s: float) -> None:
        """Unlink old files. Whoever names a file has put it just before, so that none of the rows
        that name it is younger: files need no count of references."""
        await asyncio.to_thread(self._forget, before_s - _SLACK_S)

    def _put(self, data: bytes) -> str:
        key = _digest(data)
        partial = self._folder / f"{secrets.token_hex(16)}{_PARTIAL}"
        try:
            partial.touch(mode=0o600, exist_ok=False)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / key)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(self._folder)
        return key

    def _forget(self, before_s: float) -> None:
        for path in self._folder.iterdir():
            is_ours = _KEY.fullmatch(path.name) or path.suffix == _PARTIAL
            if is_ours and path.stat().st_mtime < before_s:
                path.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

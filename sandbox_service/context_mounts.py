"""Opens the contexts of a session for its worker, and decides which of them stay by reference.

A blob that is mounted by reference has an index beside it in the object store. A missing or
damaged one is made anew, by a process of its own, once for all who wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from common.blob_index.text_index import IndexFormatError
from sandbox_service import texts
from sandbox_service.errors import ContextUnreadableError, ObjectStoreAwayError
from sandbox_service.frames import Mount
from sandbox_service.index_builds import IndexBuild, IndexKind, check_index, make_index
from sandbox_service.limits import Limits
from sandbox_service.objects import ObjectError, ObjectsAwayError, ObjectStore

_log = logging.getLogger(__name__)
_FETCHES_MAX = 8
_PROCESSES_MAX = 2
"""Processes that make indexes at a time."""
_INTERPRETER_BYTES = 64 << 20
"""Left to the interpreter where several contexts are loaded."""
_JSON_GROWTH = 4
"""Times its size that parsed JSON takes, as a rule."""
_COPY_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class ContextBlob:
    """A context to mount and where its bytes are."""

    mount: Mount
    """What to make of it."""
    key: str
    """Key of the blob."""
    size_bytes: int
    """Size of the blob."""


@dataclass(frozen=True)
class OpenedContexts:
    """What a worker is to be given; whoever has it closes the files."""

    mounts: list[Mount] = field(default_factory=list)
    """The contexts, those by reference marked so."""
    fds: list[int] = field(default_factory=list)
    """Open files in the order of frames.Open: for each its blob, then its index, if it has one."""

    def close(self) -> None:
        """Close the files."""
        while self.fds:
            os.close(self.fds.pop())


class ContextMounts:
    """The blobs and indexes of an object store, as sessions mount them."""

    def __init__(self, objects: ObjectStore, lazy_bytes_min: int) -> None:
        """Mount by reference what takes more memory than `lazy_bytes_min`, or a quarter of a
        session's."""
        self._objects = objects
        self._lazy_bytes_min = lazy_bytes_min
        self._builds: dict[str, IndexBuild] = {}
        self._making = asyncio.Semaphore(_PROCESSES_MAX)
        # Threads of their own: a blob may take minutes to fetch, and others need theirs.
        self._fetching = ThreadPoolExecutor(_FETCHES_MAX, thread_name_prefix="fetch")

    async def close(self) -> None:
        """Give up the indexes that are being made."""
        tasks = [build.task for build in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    async def open(self, contexts: Sequence[ContextBlob], limits: Limits) -> OpenedContexts:
        """Open contexts for a session with these limits; the caller closes what it gets.

        Raises ContextUnreadableError or ObjectStoreAwayError.
        """
        opened = OpenedContexts()
        quarter = limits.memory_bytes_max // 4
        single_max = min(self._lazy_bytes_min, quarter)
        together_max = max(quarter, (limits.memory_bytes_max - _INTERPRETER_BYTES) // 2)
        loaded_bytes = 0
        try:
            for context in contexts:
                opened.fds.append(await self._blob(context))
                needed = _memory_bytes(context)
                is_lazy = needed > single_max or loaded_bytes + needed > together_max
                if is_lazy:
                    opened.fds.append(await self._index(context, opened.fds[-1]))
                else:
                    loaded_bytes += needed
                opened.mounts.append(_by_reference(context, limits) if is_lazy else context.mount)
        except BaseException:
            opened.close()
            raise
        return opened

    async def reopen(self, contexts: Sequence[ContextBlob]) -> OpenedContexts:
        """Open contexts, marked as `open` marked them, for a session that has loaded the others.

        Raises ContextUnreadableError or ObjectStoreAwayError.
        """
        opened = OpenedContexts([context.mount for context in contexts])
        try:
            for context in contexts:
                if context.mount.has_index:
                    opened.fds.append(await self._blob(context))
                    opened.fds.append(await self._index(context, opened.fds[-1]))
                else:  # the session's own memory has it: nothing is read from here
                    opened.fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            opened.close()
            raise
        return opened

    async def _blob(self, context: ContextBlob) -> int:
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(
            self._fetching, self._objects.open, context.key, context.size_bytes
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        except ObjectsAwayError as error:
            raise ObjectStoreAwayError from error
        except ObjectError as error:
            raise ContextUnreadableError(context.mount.variable, str(error)) from error

    async def _index(self, context: ContextBlob, blob_fd: int) -> int:
        """Return an open index of a blob, making it where there is none."""
        key = f"indexes/{_index_kind(context)}/{context.key}"
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = IndexBuild(self._found_index(key, context, os.dup(blob_fd)))
            build.task.add_done_callback(lambda _: self._builds.pop(key))
        try:
            return await build.index_fd()
        except IndexFormatError as error:
            raise ContextUnreadableError(context.mount.variable, str(error)) from error

    async def _found_index(self, key: str, context: ContextBlob, blob_fd: int) -> int:
        try:
            found = await asyncio.to_thread(self._known_index, key, context)
            if found is None:
                async with self._making:
                    found = await make_index(_index_kind(context), blob_fd, context.size_bytes)
                try:
                    await asyncio.to_thread(self._keep, key, found)
                except BaseException:
                    os.close(found)
                    raise
            return found
        finally:
            os.close(blob_fd)

    def _known_index(self, key: str, context: ContextBlob) -> int | None:
        try:
            fd = self._objects.open(key)
        except ObjectError:
            return None
        try:
            check_index(_index_kind(context), fd, context.size_bytes)
        except (IndexFormatError, OSError) as error:
            _log.warning("the index %s is made anew: %s", key, error)
            os.close(fd)
            return None
        return fd

    def _keep(self, key: str, index_fd: int) -> None:
        """Store an index; where that fails, the next session has it made again."""
        try:
            with self._objects.writer() as writer:
                position = 0
                while data := os.pread(index_fd, _COPY_BYTES, position):
                    position += writer.write(data)
                writer.commit(key)
        except ObjectError as error:
            _log.warning("the index %s cannot be stored: %s", key, error)


def _close_opened(opening: asyncio.Future[int]) -> None:
    """Close what was opened for a caller who has gone; to fetch it may have taken long."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


def _index_kind(context: ContextBlob) -> IndexKind:
    return "json" if context.mount.kind == "json" else "text"


def _memory_bytes(context: ContextBlob) -> int:
    """Return what a context takes of a session's memory once it is loaded."""
    if context.mount.kind == "json":
        return _JSON_GROWTH * context.size_bytes
    return sum(
        texts.size_of(texts.form_of(text.code_point_max), text.characters)
        for text in context.mount.texts
    )


def _by_reference(context: ContextBlob, limits: Limits) -> Mount:
    """Mark a context as lazy, and those of its texts that are too large to be made at once."""
    mount = context.mount
    large = limits.memory_bytes_max // 16
    marked = [
        msgspec.structs.replace(text, is_lazy=mount.kind == "text" or text.size_bytes > large)
        for text in mount.texts
    ]
    return msgspec.structs.replace(mount, texts=marked, has_index=True)

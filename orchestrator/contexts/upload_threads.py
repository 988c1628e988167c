"""The threads of uploads: all that blocks on the object store, or computes for long, is done in
them. They know no upload; what is done there is the stream's business.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from orchestrator.blobs import BlobStore, BlobWriter

_JSON_CHECKS_MAX = 2
"""Pieces of JSON that are checked at a time, each in a thread."""
_THREADS_MAX = 32
"""Uploads that wait for the object store at a time, or write to it."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


class UploadThreads:
    """Threads of their own: a store that never answers must not hold those that all others share.

    A caller that is cancelled waits until what it began has ended, so that no two threads ever
    work on one upload.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="upload")
        self._json_room = asyncio.Semaphore(_JSON_CHECKS_MAX)

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what `work` returns in a thread."""
        loop, order = asyncio.get_running_loop(), functools.partial(work, *args, **kwargs)
        working = loop.run_in_executor(self._executor, order)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise

    async def check_json(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what `work`, which checks JSON, returns in a thread, once there is room for it:
        it can take seconds, and threads are for others too."""
        async with self._json_room:
            return await self.run(work, *args, **kwargs)

    async def begin_blob(self, blobs: BlobStore, key: str, kept_bytes: int = 0) -> BlobWriter:
        """Begin a blob, or go on with it; raises what `BlobStore.begin` does.

        Where the caller is cancelled it is closed again: while one holds it, nobody else can go
        on with it.
        """
        loop = asyncio.get_running_loop()
        beginning = loop.run_in_executor(self._executor, blobs.begin, key, kept_bytes)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.wait({beginning})
            if beginning.exception() is None:
                beginning.result().close()
            raise

"""The object store as one run uses it: one that is away is waited for, as long as the run has time.

The one owner of that patience. The store's own client tries again for less than a second where
nobody listens, and gives up what is never answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from orchestrator.blobs import BlobStore
from orchestrator.errors import ObjectStoreError

_PAUSE_S = 0.25
_PAUSE_S_MAX = 5.0
_DOUBLINGS_MAX = 8
_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class PatientBlobs:
    """Blobs read and stored for one run."""

    def __init__(self, blobs: BlobStore, left_s: Callable[[], float]) -> None:
        """`left_s` tells how many seconds the run has left for its work."""
        self._blobs = blobs
        self._left_s = left_s
        self.waited_s = 0.0
        """What waiting has taken so far."""

    async def put(self, key: str, data: bytes) -> None:
        """Store a small blob; raises ObjectStoreError once the run has no time left."""
        await self.outlast(lambda: self._blobs.put(key, data))

    async def read(self, key: str, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield a range in pieces, as far as the blob has it; after a break it goes on behind the
        last one. Raises BlobMissingError, and ObjectStoreError once the run has no time left."""
        end, attempt = offset + size, 0
        while True:
            try:
                async for piece in self._blobs.read(key, offset=offset, size=end - offset):
                    offset, attempt = offset + len(piece), 0
                    yield piece
            except ObjectStoreError as error:
                await self._pause(error, attempt)
                attempt += 1
            else:
                return

    async def outlast(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what an order gives that may be repeated; raises what it raises, and
        ObjectStoreError once the run has no time left."""
        attempt = 0
        while True:
            try:
                return await ask()
            except ObjectStoreError as error:
                await self._pause(error, attempt)
            attempt += 1

    async def _pause(self, error: ObjectStoreError, attempt: int) -> None:
        """Wait before the next attempt, some runs longer than others: all of them noticed at once.
        Raises the error where the run has no time for that."""
        longest_s = min(_PAUSE_S * 2 ** min(attempt, _DOUBLINGS_MAX), _PAUSE_S_MAX)
        pause_s = longest_s * random.uniform(0.5, 1.0)
        if pause_s >= self._left_s():
            raise error
        _log.warning("a run waits for the object store: %s", error.problem)
        began_s = time.monotonic()
        await asyncio.sleep(pause_s)
        self.waited_s += time.monotonic() - began_s

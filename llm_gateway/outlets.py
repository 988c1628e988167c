"""Where the pieces of a streamed answer go: from the exchange that reads the provider to the
reader of the stream. Bounded, so that a slow reader slows the provider down; a reader who has
gone does not stop the exchange, whose usage is still wanted.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from llm_gateway.answers import Delta, merged

_PIECES_MAX = 64


@dataclasses.dataclass(frozen=True)
class Started:
    """The first piece: an answer has begun."""

    model: str
    """Name of the deployment that gives it."""


class Outlet:
    """One stream's way out; one writer at a time, one reader."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Started | Delta | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_PIECES_MAX)
        self._is_closed = False
        self.started_at: float | None = None
        """When the first piece went out, in the event loop's time."""

    @property
    def has_started(self) -> bool:
        """Something has gone out, so that no other deployment can answer any more."""
        return self.started_at is not None

    async def put(self, model: str, delta: Delta) -> None:
        """Pass on a piece from a deployment; waits for room, drops it if the reader has gone."""
        await self._room.acquire()
        if self._is_closed:
            self._room.release()
            return
        if not self.has_started:
            self.started_at = asyncio.get_running_loop().time()
            self._pieces.put_nowait(Started(model))
        self._pieces.put_nowait(delta)

    def end(self) -> None:
        """Say that no piece follows."""
        self._pieces.put_nowait(None)

    def close(self) -> None:
        """Say that nobody reads any more."""
        self._is_closed = True
        self._room.release()

    async def pieces(self) -> AsyncIterator[Started | Delta]:
        """Give the pieces until the end; those that have come meanwhile as one, since each that
        is sent costs more than it took to read."""
        is_over = False
        while not is_over:
            pieces = [await self._pieces.get()]
            while not self._pieces.empty():
                pieces.append(self._pieces.get_nowait())
            is_over = pieces[-1] is None
            for piece in pieces:
                if isinstance(piece, Started):
                    yield piece
            deltas = [piece for piece in pieces if isinstance(piece, Delta)]
            for _ in deltas:
                self._room.release()
            for delta in merged(deltas):
                yield delta

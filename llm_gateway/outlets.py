"""Where the pieces of a streamed answer go: from the exchange that reads the provider to the
reader of the stream.

A slow reader holds nobody up: not the provider, whose slot others want, nor those who share the
answer. What waits for it is kept, as long as the `backlog` of all readers has room for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from llm_gateway.answers import Answer, Delta, merged
from llm_gateway.backlog import Backlog
from llm_gateway.errors import StreamReaderSlowError

_PIECE_BYTES = 200
"""What a piece takes besides its text."""
_LOOSE_MAX = 256
"""Pieces that wait one by one. Most are a word, and take far more than their text."""
_TAKEN_BYTES_MAX = 1 << 16
"""What one reader takes at a time: once it has begun to, nobody can let go of it."""


@dataclasses.dataclass(frozen=True)
class Started:
    """The first piece: an answer has begun."""

    model: str
    """Name of the deployment that gives it."""


class Outlet:
    """One stream's way out; one writer at a time, one reader."""

    def __init__(self, backlog: Backlog, tenant: str) -> None:
        self.tenant = tenant
        """Whose reader it is."""
        self.waiting_bytes = 0
        """What the reader has not begun to take."""
        self.started_at: float | None = None
        """When the first piece came, in the event loop's time."""
        self._backlog = backlog
        self._taken_bytes = 0
        self._model = ""
        self._waiting: list[Delta] = []
        self._loose = 0
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._is_over = False
        self._is_closed = False

    @property
    def has_started(self) -> bool:
        """Something has gone out, so that no other deployment can answer any more."""
        return self.started_at is not None

    def put(self, model: str, delta: Delta) -> None:
        """Pass on a piece from a deployment; it is dropped where the reader has gone."""
        if self._is_closed:
            return
        if self.started_at is None:
            self.started_at = asyncio.get_running_loop().time()
            self._model = model
        self._waiting.append(delta)
        self._loose += 1
        if self._loose == _LOOSE_MAX:
            self._join_loose()
        self._news.set()
        self._hold(delta.size_bytes + _PIECE_BYTES)

    def end(self, answer: Answer) -> None:
        """Give the whole answer, which no piece follows."""
        self._is_over = True
        self._news.set()
        if not self._is_closed:
            self._answer = answer
            self._hold(answer.completion.size_bytes)

    def fail(self, error: BaseException) -> None:
        """Say that no piece follows, and why; the reader gets those before it first."""
        self._is_over = True
        self._error = self._error or error
        self._news.set()

    def cut_off(self) -> None:
        """Let go of what waits, and of what comes; a reader who comes back is told why."""
        self._let_go()
        self._is_closed = True
        self.fail(StreamReaderSlowError())

    def close(self) -> None:
        """Say that nobody reads any more."""
        self._is_closed = True
        self._let_go()
        self._release_taken()
        self._backlog.forget(self)

    async def pieces(self) -> AsyncIterator[Started | Delta | Answer]:
        """Give the pieces and then the answer; those that have come meanwhile as one, since each
        that is sent costs more than it took to read. Raises what `fail` was given."""
        await self._news.wait()
        if self.has_started:
            yield Started(self._model)
        while self._waiting or not self._is_over:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
            for delta in list(merged(self._take())):  # else the parts are kept while it is sent
                yield delta
            self._release_taken()
        if self._answer is not None:
            answer, self._answer = self._answer, None
            self._taken_bytes, self.waiting_bytes = self.waiting_bytes, 0
            if not self.has_started:
                for piece in _whole(answer):
                    yield piece
            yield answer
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback leads here, and would keep all of this

    def _take(self) -> list[Delta]:
        taken = number = 0
        while number < len(self._waiting) and taken < _TAKEN_BYTES_MAX:
            taken += self._waiting[number].size_bytes + _PIECE_BYTES
            number += 1
        pieces, self._waiting = self._waiting[:number], self._waiting[number:]
        self._loose = min(self._loose, len(self._waiting))
        self.waiting_bytes -= taken
        self._taken_bytes += taken
        return pieces

    def _join_loose(self) -> None:
        """Make one piece of each kind of the last that came; the newest is not counted yet."""
        joined = list(merged(self._waiting[-self._loose :]))
        saved = (self._loose - len(joined)) * _PIECE_BYTES
        self._waiting[-self._loose :] = joined
        self._loose = 0
        self.waiting_bytes -= saved
        self._backlog.release(self, saved)

    def _hold(self, size_bytes: int) -> None:
        self.waiting_bytes += size_bytes
        self._backlog.hold(self, size_bytes)

    def _let_go(self) -> None:
        self._waiting.clear()
        self._loose = 0
        self._answer = None
        self._backlog.release(self, self.waiting_bytes)
        self.waiting_bytes = 0

    def _release_taken(self) -> None:
        self._backlog.release(self, self._taken_bytes)
        self._taken_bytes = 0


def _whole(answer: Answer) -> list[Started | Delta]:
    """Return the pieces of a stream whose answer came at once."""
    completion = answer.completion
    parts = (Delta(reasoning=completion.reasoning), Delta(text=completion.text))
    return [Started(answer.model), *(part for part in parts if part.size_bytes)]

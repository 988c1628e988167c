"""Keeps the service within its memory: evicts idle sessions, then stops the largest busy one.

Looks a few times a second at what the workers have for themselves and at the sessions' layers,
which belong to no process. Between two looks a guest can take as much as its own limit allows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from common.background import end_tasks
from sandbox_service.errors import CapacityError

_log = logging.getLogger(__name__)
_PERIOD_S = 0.25
_PATIENCE_S = 2.0
"""So long it may stay above the bound, with nothing left to evict, before a cell is stopped."""


class WatchedSession(Protocol):
    """What the watch needs of a session."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def memory_bytes(self) -> int:
        """Linear memory; of a busy session as it was last heard of."""

    async def stop_for_memory(self) -> None:
        """End what runs in it, as out of memory."""


S = TypeVar("S", bound=WatchedSession)


class WatchedSessions(Protocol[S]):
    """What the watch needs of the sessions."""

    def memory_bytes(self) -> int:
        """Return the memory of the workers and of the sessions' layers."""

    def idle_sessions(self) -> Sequence[S]:
        """Return the sessions that can be evicted, the one unused for longest first."""

    def busy_sessions(self) -> Sequence[S]:
        """Return the sessions in which something runs."""

    async def evict(self, session: S) -> None:
        """Put an idle session aside until it is used again."""

    def end_greedy_worker(self) -> bool:
        """End a worker that has taken more than its sessions may; returns whether one did."""


class MemoryGauge:
    """How much memory is taken, as of the last look; the watch keeps it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        """What may be taken."""
        self.bytes_used = 0
        """What is taken."""
        self.is_short = False
        """Whether more is taken than may be, and nothing idle is left to evict."""
        self.evictions = 0
        """Idle sessions that were to be evicted so far."""
        self.stops = 0
        """Executions that were stopped so far."""

    def require_room(self) -> None:
        """Raise CapacityError where another session would make it worse."""
        if self.is_short:
            raise CapacityError(
                f"the sessions take {self.bytes_used} of {self.bytes_max} bytes of memory"
            )


class MemoryWatch(Generic[S]):
    """Watches over the sessions; a context manager that looks for as long as it is open."""

    def __init__(
        self,
        sessions: WatchedSessions[S],
        gauge: MemoryGauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._gauge = gauge
        self._clock = clock
        self._short_since: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watching is not None:
            await end_tasks(self._watching)

    async def look(self) -> None:
        """Measure, and make room where more is taken than may be."""
        self._measure()
        for session in self._sessions.idle_sessions():
            if not self._is_over:
                break
            _log.info("memory is short: %s is evicted", session.name)
            self._gauge.evictions += 1
            await self._sessions.evict(session)
            self._measure()
        self._gauge.is_short = self._is_over
        if not self._is_over:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = self._clock()
        elif self._clock() - self._short_since > _PATIENCE_S:
            if not self._sessions.end_greedy_worker():
                await self._stop_largest()
            self._short_since = None  # what it frees shows at the next looks

    @property
    def _is_over(self) -> bool:
        return self._gauge.bytes_used > self._gauge.bytes_max

    def _measure(self) -> None:
        self._gauge.bytes_used = self._sessions.memory_bytes()

    async def _stop_largest(self) -> None:
        busy = self._sessions.busy_sessions()
        if busy:
            largest = max(busy, key=lambda session: session.memory_bytes)
            _log.warning("memory is short: what runs in %s is stopped", largest.name)
            self._gauge.stops += 1
            await largest.stop_for_memory()

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # of one look: the next one may do
                _log.exception("the memory watch failed")
            # What could not be evicted just then cannot be a moment later.
            in_vain = self._gauge.is_short and self._sessions.idle_sessions()
            await asyncio.sleep(_PATIENCE_S if in_vain else _PERIOD_S)

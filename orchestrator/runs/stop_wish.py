"""The wish that a run stop: a caller's, the server's own, or that this process let go of the run
because it goes on elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

from common.errors import ServiceError
from orchestrator.errors import RunCancelledError, RunOverdueError

Reason = type[RunCancelledError] | type[RunOverdueError]


class StopWish:
    """The wish, kept from when it is made until the run's work begins, and while that lasts."""

    def __init__(self) -> None:
        self._work: asyncio.Task[Any] | None = None
        self._reason: Reason | None = None
        self._is_left = False

    def wish(self, reason: Reason) -> None:
        """Stop the run; it ends with this error. The first wish counts."""
        if self._reason is None:
            self._reason = reason
            self._stop()

    def leave(self) -> None:
        """Let go of the run: its work stops, and it goes on in another process or later. Whatever
        was wished is kept in the database and met there."""
        self._is_left = True
        self._stop()

    @property
    def is_wished(self) -> bool:
        """True once the run is to end."""
        return self._reason is not None

    @property
    def is_left(self) -> bool:
        """True once this process has let go of the run. Nothing more may be told of it, and nothing
        that belongs to it, such as its session, may be closed: all of that is another's."""
        return self._is_left

    def stops(self, work: asyncio.Task[Any]) -> None:
        """Take the work that is to be stopped."""
        self._work = work
        if self._reason is not None or self._is_left:
            work.cancel()

    def error(self, run: str) -> ServiceError:
        """Return why the run was stopped; `run` is its resource name."""
        return (self._reason or RunCancelledError)(run)

    def _stop(self) -> None:
        if self._work is not None:
            self._work.cancel()

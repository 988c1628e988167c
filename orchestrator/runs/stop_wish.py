"""The wish that a run stop: a caller's, or that of a service that shuts down."""

from __future__ import annotations

import asyncio
from typing import Any

from common.errors import ServiceError
from orchestrator.errors import RunCancelledError, RunInterruptedError

Reason = type[RunCancelledError] | type[RunInterruptedError]


class StopWish:
    """The wish, kept from when it is made until the run's work begins, and while that lasts."""

    def __init__(self) -> None:
        self._work: asyncio.Task[Any] | None = None
        self._reason: Reason | None = None

    def wish(self, reason: Reason) -> None:
        """Stop the run; it ends with this error. The first wish counts."""
        if self._reason is None:
            self._reason = reason
            if self._work is not None:
                self._work.cancel()

    @property
    def is_wished(self) -> bool:
        """True once the run is to stop."""
        return self._reason is not None

    def stops(self, work: asyncio.Task[Any]) -> None:
        """Take the work that is to be stopped."""
        self._work = work
        if self._reason is not None:
            work.cancel()

    def error(self, run: str) -> ServiceError:
        """Return why the run was stopped; `run` is its resource name."""
        return (self._reason or RunInterruptedError)(run)

"""A run while this process drives it: as it was taken up, and what it was told since.

Which runs there are, and what becomes of one that does not do as it was told, is the queue's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

from orchestrator.durable.turnstile import Taken
from orchestrator.runs.stop_wish import Reason, StopWish


@dataclasses.dataclass
class Driving:
    """A run that is driven here. Make one on the event loop."""

    taken: Taken
    """As it was taken up."""
    stop: StopWish = dataclasses.field(default_factory=StopWish)
    """What its driver is told."""
    is_begun: bool = False
    """Whether its driver was called."""
    abandoned: asyncio.Future[None] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done where its driver is waited for no longer."""
    over: asyncio.Future[None] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done once it is driven here no more."""
    _told_s: float = float("inf")
    _ends_s: float = float("inf")

    def stop_for(self, reason: Reason) -> None:
        """Have it end with an error, which the first wish decides."""
        self._told_s = min(self._told_s, time.monotonic())
        self.stop.wish(reason)

    def leave(self) -> None:
        """Let go of it: it is not this process's alone any more."""
        self._told_s = min(self._told_s, time.monotonic())
        self.stop.leave()
        if not self.is_begun:
            self.abandon()  # before the engine asks for it once more, which is another's

    def abandon(self) -> None:
        """Wait for its driver no longer."""
        if not self.abandoned.done():
            self.abandoned.set_result(None)

    def told_for_s(self) -> float:
        """Return how long ago it was told to stop; less than 0 where it was not."""
        return time.monotonic() - self._told_s

    def overdue_s(self) -> float:
        """Return by how much it has outlived its wall time; less than 0 before. Once the end of
        that is known, a wall clock that is set ends no run."""
        if self._ends_s == float("inf"):
            self._ends_s = time.monotonic() + self.taken.record.ends_s - time.time()
        return time.monotonic() - self._ends_s

"""The durable engine as a run sees it: pieces of work that are done once, whatever dies.

What a piece of work found out is told by an event of the run, which is stored with it; the engine
keeps only that event's sequence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

Work = Callable[[], Awaitable[int]]
"""Does a piece of work and returns the sequence of the event that tells what came of it."""


class StepsLostError(Exception):
    """The engine lets another process take the run's steps. Whose the run is, the database says:
    it is let go of here, and taken up anew where it is this process's all the same."""


class Steps(Protocol):
    """Runs the steps of one run, in an order that is the same whenever the run is driven again."""

    async def step(self, name: str, work: Work, /) -> int:
        """Return what `work` returns, or what it returned when the run was driven before.

        `name` is for people and need not be unique. `work` can run more than once, where a
        process died between its end and the engine's note of it: it looks for the event that
        it would write before it does anything. Raises StepsLostError.
        """

"""The durable engine in our words: it carries out a run's work, and remembers the steps that the
work has done, whatever dies. Which run is whose, it does not decide.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from orchestrator.runs.log.steps import Steps

RunWork = Callable[[Steps], Awaitable[None]]
"""Drives a run to its end, or raises RunLeftError."""
Ended = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Returns those of some runs whose end is in the log."""
Alive = Callable[[], Awaitable[Collection[str]]]
"""Returns the ids of the processes that drive runs at that moment."""


class RunLeftError(Exception):
    """This process has let go of the run, which is not at its end."""


class DurableEngine(Protocol):
    """Carries out the work of runs."""

    async def carry_out(self, run_id: str, work: RunWork, *, is_first: bool) -> None:
        """Carry out a run's work and return at its end. `is_first` says that nobody has begun it
        before; else it goes on from the steps that are remembered.

        Only the process that has taken up the run may call this. Whatever `work` raises is raised
        here, and leaves the run to be carried out again, by this process or another.
        """

    async def forget(self, *, ended_before_s: float, begun_before_s: float, alive: Alive) -> int:
        """Forget some of the runs that ended, or at least began, so many seconds ago, and what was
        kept for processes that are not alive; return how many runs. Raises DatabaseAwayError."""

    async def forget_left(self, ended: Ended) -> int:
        """Forget the runs that `ended` names twice in a row, and that are thought of as under way:
        their process died between their end and the note of it. Return how many. Raises
        DatabaseAwayError."""

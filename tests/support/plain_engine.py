"""An engine that remembers nothing, and its steps: the event log alone says what is done."""

from __future__ import annotations

from orchestrator.durable.engine import Alive, Ended, RunWork
from orchestrator.runs.log.steps import Work


class PlainSteps:
    """Steps that are done whenever they are met."""

    async def step(self, _name: str, work: Work) -> int:
        """Do the work."""
        return await work()


class PlainEngine:
    """Carries out the work of runs, and that is all."""

    async def carry_out(self, _run_id: str, work: RunWork, *, is_first: bool) -> None:
        """Do the work."""
        del is_first
        await work(PlainSteps())

    async def forget(self, *, ended_before_s: float, begun_before_s: float, alive: Alive) -> int:
        """Forget nothing."""
        del ended_before_s, begun_before_s, alive
        return 0

    async def forget_left(self, _ended: Ended) -> int:
        """Forget nothing."""
        return 0

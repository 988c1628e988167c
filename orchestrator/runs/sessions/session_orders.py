"""How the sandbox service is asked for the sessions of one run."""

from __future__ import annotations

import secrets

from orchestrator.runs.budget import Budget
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import RestoreOrder, SessionOrder
from orchestrator.runs.sessions.beginning import Beginning

GRACE_S = 1.0
"""By which a call outlives the run's time for work, to be told how it ended."""
_IDLE_TTL_MAX_S = 1800.0
"""Longer than a model thinks; sessions that nobody takes over end after it."""


class SessionOrders:
    """Makes orders, each with a token of its own and for the time that the run has left."""

    def __init__(self, run_id: str, budget: Budget, passes: RunPasses) -> None:
        self._run_id = run_id
        self._budget = budget
        self._passes = passes

    def fresh(self, beginning: Beginning) -> SessionOrder:
        """Return the order for a session with nothing but its context; the sources of its prelude
        are run in it later."""
        left_s = self._budget.work_left_s
        mounted, nature = beginning.mounted, beginning.nature
        return SessionOrder(
            run_id=self._run_id,
            request_id=self._request_id(),
            context=mounted.context,
            documents=mounted.documents,
            run_token=self._passes.for_cell(),
            sub_tier=self._passes.sub_tier,
            clock_ns=nature.clock_ns,
            seed=nature.seed,
            guest=beginning.prelude.guest,
            execute_time_max_s=beginning.cell_time_max_s,
            idle_ttl_s=min(left_s + GRACE_S, _IDLE_TTL_MAX_S),
            timeout_s=left_s,
        )

    def restored(self, checkpoint_key: str) -> RestoreOrder:
        """Return the order for a session as a checkpoint has it."""
        left_s = self._budget.work_left_s
        return RestoreOrder(
            run_id=self._run_id,
            request_id=self._request_id(),
            checkpoint_key=checkpoint_key,
            run_token=self._passes.for_cell(),
            sub_tier=self._passes.sub_tier,
            idle_ttl_s=min(left_s + GRACE_S, _IDLE_TTL_MAX_S),
            timeout_s=left_s,
        )

    def _request_id(self) -> str:
        """Return a fresh one: the same one with another token would be refused."""
        return f"{self._run_id}/{secrets.token_hex(8)}"

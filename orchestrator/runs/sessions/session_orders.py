"""How the sandbox service is asked for the sessions of one run."""

from __future__ import annotations

import secrets

from orchestrator.runs.budget import Budget
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import RestoreOrder, SessionOrder
from orchestrator.runs.sessions.executions import SessionNature
from orchestrator.runs.sessions.mounted import Mounted

GRACE_S = 1.0
"""By which a call outlives the run's time for work, to be told how it ended."""
_IDLE_TTL_MAX_S = 1800.0
"""Longer than a model thinks; sessions that nobody takes over end after it."""


class SessionOrders:
    """Makes orders, each with a token of its own and for the time that the run has left."""

    def __init__(
        self,
        run_id: str,
        nature: SessionNature,
        budget: Budget,
        passes: RunPasses,
        *,
        guest: str,
        cell_time_max_s: float,
    ) -> None:
        """`guest` is what a session has imported; empty for the service's default."""
        self._run_id = run_id
        self._nature = nature
        self._budget = budget
        self._passes = passes
        self._guest = guest
        self._cell_time_max_s = cell_time_max_s

    def fresh(self, mounted: Mounted) -> SessionOrder:
        """Return the order for a session with nothing but its context."""
        left_s = self._budget.work_left_s
        return SessionOrder(
            run_id=self._run_id,
            request_id=self._request_id(),
            context=mounted.context,
            documents=mounted.documents,
            run_token=self._passes.for_cell(),
            sub_tier=self._passes.sub_tier,
            clock_ns=self._nature.clock_ns,
            seed=self._nature.seed,
            guest=self._guest,
            execute_time_max_s=self._cell_time_max_s,
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

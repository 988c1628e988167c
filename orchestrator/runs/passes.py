"""The run tokens of one run: what each step may spend, signed for the gateway."""

from __future__ import annotations

import time

from common.run_token import RunToken, RunTokenSigner
from orchestrator.runs.budget import Allowance, Budget

_GRACE_S = 60.0
"""A token outlives its run by this, for clocks that differ."""


class RunPasses:
    """Makes a run's tokens as they are needed, so that each knows what was spent before."""

    def __init__(
        self,
        signer: RunTokenSigner,
        budget: Budget,
        *,
        tenant: str,
        run: str,
        root_tier: str,
        sub_tier: str,
    ) -> None:
        self._signer = signer
        self._budget = budget
        self._tenant = tenant
        self._run = run
        self._root_tier = root_tier
        self.sub_tier = sub_tier
        """Tier or deployment that sub-calls ask where they name none."""

    def for_turn(self) -> str:
        """Permit the root model, within what work may spend."""
        return self._mint(self._budget.work_allowance(), (self._root_tier,))

    def for_cell(self) -> str:
        """Permit sub-calls, within what work may spend; code may ask the root's tier too."""
        tiers = tuple(dict.fromkeys((self.sub_tier, self._root_tier)))
        return self._mint(self._budget.work_allowance(), tiers)

    def for_last_answer(self) -> str:
        """Permit the root model, within the run's whole limits."""
        return self._mint(self._budget.whole_allowance(), (self._root_tier,))

    def _mint(self, allowance: Allowance, tiers: tuple[str, ...]) -> str:
        token = RunToken(
            tenant=self._tenant,
            run=self._run,
            depth=0,
            tiers=tiers,
            tokens_max=allowance.tokens_max,
            cost_usd_nanos_max=allowance.cost_usd_nanos_max,
            tokens_spent=self._budget.tokens,
            cost_usd_nanos_spent=self._budget.usage.cost_usd_nanos,
            expires_at=time.time() + self._budget.left_s + _GRACE_S,
        )
        return self._signer.mint(token)

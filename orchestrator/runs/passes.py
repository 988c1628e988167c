"""The run tokens of one run: what each step may spend, signed for the gateway."""

from __future__ import annotations

import time
from collections.abc import Sequence

from common.run_token import ORCHESTRATOR, SANDBOX, RunToken, RunTokenSigner, Subtree
from orchestrator.runs.budget import Allowance, Budget
from orchestrator.runs.children.lineage import Lineage

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
        depth: int = 0,
        lineage: Lineage | None = None,
        key: str = "",
    ) -> None:
        """`lineage` is what is above a child run, whose tokens are of its root's meter; `key` names
        the API key that a run without one was created with."""
        self._signer = signer
        self._budget = budget
        self._tenant = tenant
        self._run = run
        self._depth = depth
        self._lineage = lineage
        self._key = key
        self._root_tier = root_tier
        self.sub_tier = sub_tier
        """Tier or deployment that sub-calls ask where they name none."""

    def for_turn(self) -> str:
        """Permit the root model, within what work may spend."""
        return self._mint(self._budget.work_allowance(), (self._root_tier,), ORCHESTRATOR)

    def for_notes(self) -> str:
        """Permit either tier to keep the conversation short, within what work may spend."""
        return self._mint(self._budget.work_allowance(), self.cell_tiers, ORCHESTRATOR)

    def for_cell(self) -> str:
        """Permit sub-calls and child runs, within what work may spend; code may ask the root's
        tier too."""
        return self._mint(self._budget.work_allowance(), self.cell_tiers, SANDBOX)

    def for_last_answer(self) -> str:
        """Permit the root model, within the run's whole limits."""
        return self._mint(self._budget.whole_allowance(), (self._root_tier,), ORCHESTRATOR)

    def for_replay(self, ledger_run: str, *, tiers: Sequence[str] = ()) -> str:
        """Permit code that ran before to be told again what it was told, under the run whose spend
        that was, and nothing that would cost anything. `tiers` are what it might ask then; empty
        for what cells may ask now."""
        token = RunToken(
            tenant=self._tenant,
            run=ledger_run,
            depth=0,
            tiers=tuple(tiers) or self.cell_tiers,
            tokens_max=0,
            cost_usd_nanos_max=0,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=time.time() + self._budget.left_s + _GRACE_S,
            presenters=(SANDBOX,),
        )
        return self._signer.mint(token)

    @property
    def lifetime_s(self) -> float:
        """How long a token is good for at most; 0 for as long as the run."""
        return self._signer.lifetime_s_max or 0.0

    @property
    def ledger_run(self) -> str:
        """The run under which the gateway's ledger has this one's calls."""
        return self._lineage.root if self._lineage is not None else self._run

    @property
    def cell_tiers(self) -> tuple[str, ...]:
        """What cells may ask, the one first that they ask where they name none."""
        return tuple(dict.fromkeys((self.sub_tier, self._root_tier)))

    def _mint(self, allowance: Allowance, tiers: tuple[str, ...], presenter: str) -> str:
        expires_at = time.time() + self._budget.left_s + _GRACE_S
        above = self._lineage
        if above is None:
            token = RunToken(
                tenant=self._tenant,
                run=self._run,
                depth=self._depth,
                tiers=tiers,
                tokens_max=allowance.tokens_max,
                cost_usd_nanos_max=allowance.cost_usd_nanos_max,
                tokens_spent=self._budget.tokens,
                cost_usd_nanos_spent=self._budget.usage.cost_usd_nanos,
                expires_at=expires_at,
                key=self._key,
                presenters=(presenter,),
            )
            return self._signer.mint(token)
        own = Subtree(
            name=self._run,
            tokens_max=allowance.tokens_max,
            cost_usd_nanos_max=allowance.cost_usd_nanos_max,
        )
        token = RunToken(
            tenant=self._tenant,
            run=above.root,
            depth=self._depth,
            tiers=tiers,
            tokens_max=above.tokens_max,
            cost_usd_nanos_max=above.cost_usd_nanos_max,
            tokens_spent=above.tokens_spent,
            cost_usd_nanos_spent=above.cost_usd_nanos_spent,
            expires_at=expires_at,
            key=above.key,
            subtrees=(*above.subtrees, own),
            presenters=(presenter,),
        )
        return self._signer.mint(token)

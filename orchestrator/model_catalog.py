"""What the gateway offers: checked before a run is accepted, and told to the root model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from fathom.gateway.v1.gateway_service_pb2 import Model

from common.run_token import ORCHESTRATOR, RunToken, RunTokenSigner
from orchestrator.errors import ModelNotOfferedError
from orchestrator.gateway_client import ModelSource
from orchestrator.runs.spec import ROOT_TIER, SUB_TIER

_KEPT_S = 10.0
_TOKEN_S = 60.0


@dataclasses.dataclass(frozen=True)
class TierFacts:
    """What is known of the deployments of one tier."""

    window_tokens: int
    """The smallest window, prompt and answer together; 0 where none is known."""
    input_usd_nanos_per_million_tokens: int
    """The dearest price of input."""
    output_usd_nanos_per_million_tokens: int
    """The dearest price of output."""


class ModelCatalog:
    """The gateway's offer, remembered for some seconds."""

    def __init__(
        self,
        source: ModelSource,
        signer: RunTokenSigner,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._signer = signer
        self._clock = clock
        self._kept: dict[tuple[str, ...], tuple[float, Sequence[Model]]] = {}

    async def facts(
        self, tenant: str, *, root_tier: str, sub_tier: str
    ) -> tuple[TierFacts, TierFacts]:
        """Return what is known of a run's two tiers.

        Raises ModelNotOfferedError, and ReceivedError where the gateway does not answer.
        """
        asked = tuple(sorted({root_tier, sub_tier, ROOT_TIER, SUB_TIER}))
        models = await self._models(tenant, asked)
        return (
            _facts("spec.root_tier", root_tier, models),
            _facts("spec.sub_tier", sub_tier, models),
        )

    async def _models(self, tenant: str, tiers: tuple[str, ...]) -> Sequence[Model]:
        until, models = self._kept.get(tiers, (0.0, ()))
        if self._clock() < until:
            return models
        token = RunToken(
            tenant=tenant,
            run="runs/none",
            depth=0,
            tiers=tiers,
            tokens_max=0,
            cost_usd_nanos_max=0,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=time.time() + _TOKEN_S,
            presenters=(ORCHESTRATOR,),
        )
        models = await self._source.list_models(self._signer.mint(token))
        # Names come from callers: only the newest answer is kept, so nothing grows.
        self._kept = {tiers: (self._clock() + _KEPT_S, models)}
        return models


def _facts(field: str, tier: str, models: Sequence[Model]) -> TierFacts:
    pool = [model for model in models if tier in model.tiers or tier == model.name]
    if not pool:
        offered = sorted({name for model in models for name in model.tiers})
        raise ModelNotOfferedError(field, tier, offered)
    windows = [model.context_tokens_max for model in pool if model.context_tokens_max]
    return TierFacts(
        window_tokens=min(windows, default=0),
        input_usd_nanos_per_million_tokens=max(
            model.input_usd_nanos_per_million_tokens for model in pool
        ),
        output_usd_nanos_per_million_tokens=max(
            model.output_usd_nanos_per_million_tokens for model in pool
        ),
    )

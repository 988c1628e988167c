"""What the gateway offers: providers, deployments of their models, and tiers of deployments.

Values only; `catalog_file.py` reads them from the configuration file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from common.config import Secret
from llm_gateway.egress.policy import EgressPolicies
from llm_gateway.errors import ModelNotOfferedError
from llm_gateway.prices import Price

MODEL_PREFIX = "models/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One OpenAI-compatible endpoint and the credential for it."""

    name: str
    """What errors, metrics and traces call it."""
    base_url: str
    """URL that `/chat/completions` is appended to."""
    api_key: Secret | None
    """Sent as a bearer token; None for an endpoint that needs none."""
    headers: Mapping[str, str]
    """Sent with every request."""
    timeout_s: float
    """Seconds without a byte after which an exchange is given up."""
    output_limit_field: str
    """The parameter that limits output: `max_tokens` or `max_completion_tokens`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """One model at one provider, at a price."""

    name: str
    """Its name on the wire is `models/{name}`."""
    provider: Provider
    """Where it runs."""
    model: str
    """The provider's id of it."""
    context_tokens_max: int
    """Tokens that fit in one call, prompt and answer together; 0 when unknown."""
    output_tokens_max: int
    """Tokens it answers with at most; 0 when unknown."""
    concurrency_max: int
    """Exchanges with it at a time."""
    price: Price
    """What its tokens cost."""
    omit_parameters: frozenset[str]
    """Parameters of the prompt that the model refuses and that are not sent to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything offered."""

    deployments: Mapping[str, Deployment]
    """By name."""
    tiers: Mapping[str, tuple[str, ...]]
    """Names of deployments by tier, in the order in which they are tried."""
    egress: EgressPolicies = dataclasses.field(default_factory=EgressPolicies)
    """What may leave for them."""

    def pool(self, wanted: str) -> tuple[Deployment, ...]:
        """Return what may answer for a tier or `models/{model}`; raises ModelNotOfferedError."""
        names = self.tiers.get(wanted, ())
        if wanted.startswith(MODEL_PREFIX):
            name = wanted.removeprefix(MODEL_PREFIX)
            names = (name,) if name in self.deployments else ()
        if not names:
            models = (MODEL_PREFIX + name for name in self.deployments)
            is_model = wanted.startswith(MODEL_PREFIX)
            raise ModelNotOfferedError(wanted, models if is_model else self.tiers)
        return tuple(self.deployments[name] for name in names)

    def tiers_of(self, name: str) -> tuple[str, ...]:
        """Return the tiers that a deployment is in."""
        return tuple(tier for tier, names in self.tiers.items() if name in names)

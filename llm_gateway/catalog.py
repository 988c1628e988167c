"""What the gateway offers: providers, deployments of their models, and tiers of deployments.

Values only; `catalog_file.py` reads them from the configuration file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from common.config import Secret
from llm_gateway.cache.rules import CacheRules
from llm_gateway.egress.policy import EgressPolicies
from llm_gateway.errors import ModelNotOfferedError
from llm_gateway.prices import Price
from llm_gateway.tls import Tls

MODEL_PREFIX = "models/"
Steps = tuple[tuple[str, ...], ...]
"""Names of deployments in the order in which they are tried; those of one step share the calls."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """One OpenAI-compatible endpoint and the credential for it."""

    name: str
    """What errors, metrics and traces call it."""
    base_url: str
    """URL that `/chat/completions` is appended to."""
    api_key: Secret | None
    """Sent as a bearer token; None for an endpoint that needs none."""
    api_key_file: Path | None = None
    """Where the key was read from, where that was a file."""
    headers: Mapping[str, str]
    """Sent with every request."""
    proxy: Secret | None = None
    """URL of the HTTP proxy that leads there; it may hold a credential."""
    tls: Tls | None = None
    """Certificates; None for the system's."""
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
    output_tokens_default: int = 0
    """Tokens an answer may have where the prompt does not say; 0 for the gateway's default."""
    concurrency_max: int
    """Exchanges with it at a time."""
    requests_per_minute: int = 0
    """Exchanges begun in a minute at most; 0 for no limit."""
    tokens_per_minute: int = 0
    """Tokens, input and output, in a minute at most; 0 for no limit."""
    weight: int = 1
    """Share of the calls it gets among the deployments of its step."""
    price: Price
    """What its tokens cost."""
    omit_parameters: frozenset[str]
    """Parameters of the prompt that the model refuses and that are not sent to it."""
    structured_output: bool = False
    """Whether it is sent the schema of an answer that the prompt wants."""
    vocabulary: str = ""
    """What its tokens are counted by (`tokens.py`); empty to tell by the model's id."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """Which tier answers where it is not the one that was asked."""

    tiers_by_depth: tuple[str, ...] = ("root", "sub")
    """Tiers of prompts that name none, by depth of the caller; the last for all that are deeper."""
    larger_window_tier: str = ""
    """Who is asked when messages do not fit the tier that was asked; empty for nobody."""
    downgrade: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The tier that stands in for each, once a run has spent `downgrade_share` of its limits."""
    downgrade_share: float = 0.8
    """Share of the tokens or the money of a run."""
    hedge_share: float = 0.0
    """Second attempts for slow calls, for each call; 0 for none."""

    def tier_at(self, depth: int) -> str:
        """Return the tier of a prompt that names none."""
        return self.tiers_by_depth[min(depth, len(self.tiers_by_depth) - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything offered."""

    deployments: Mapping[str, Deployment]
    """By name."""
    tiers: Mapping[str, Steps]
    """What answers for each tier."""
    egress: EgressPolicies = dataclasses.field(default_factory=EgressPolicies)
    """What may leave for them."""
    routing: Routing = dataclasses.field(default_factory=Routing)
    """Who stands in for whom."""
    cache: CacheRules = dataclasses.field(default_factory=CacheRules)
    """Which of their answers are given again."""

    def steps(self, wanted: str) -> Steps:
        """Return what may answer for a tier or `models/{model}`; raises ModelNotOfferedError."""
        steps = self.tiers.get(wanted, ())
        if wanted.startswith(MODEL_PREFIX):
            name = wanted.removeprefix(MODEL_PREFIX)
            steps = ((name,),) if name in self.deployments else ()
        if not steps:
            models = (MODEL_PREFIX + name for name in self.deployments)
            is_model = wanted.startswith(MODEL_PREFIX)
            raise ModelNotOfferedError(wanted, models if is_model else self.tiers)
        return steps

    def pool(self, wanted: str) -> tuple[Deployment, ...]:
        """Return the same as one list; raises ModelNotOfferedError."""
        return tuple(self.deployments[name] for step in self.steps(wanted) for name in step)

    def tiers_of(self, name: str) -> tuple[str, ...]:
        """Return the tiers that a deployment is in."""
        return tuple(
            tier for tier, steps in self.tiers.items() if any(name in step for step in steps)
        )

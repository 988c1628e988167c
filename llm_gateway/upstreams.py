"""What the gateway remembers of each deployment between calls: free slots, the provider's rate
limit, and how many retries it may still cause. One process's knowledge, lost with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.provider import Provider

_RETRY_SHARE = 0.2
"""Retries for each first attempt, so that a provider in trouble is not loaded further."""
_RETRIES_SAVED_MAX = 10.0
"""What quiet times save up, and what a gateway begins with."""


class RetryBudget:
    """Lets retries be at most a share of an upstream's traffic."""

    def __init__(self) -> None:
        self._retries = _RETRIES_SAVED_MAX

    def note_first_attempt(self) -> None:
        """Earn a share of a retry."""
        self._retries = min(_RETRIES_SAVED_MAX, self._retries + _RETRY_SHARE)

    def take(self) -> bool:
        """Spend one retry; False where there is none left."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True


class RateFloor:
    """The time before which a provider does not want to be asked; one for each of its quotas."""

    def __init__(self) -> None:
        self._not_before = 0.0

    def raise_to(self, not_before: float) -> None:
        """Note a provider's wish, in the loop's time; an earlier one is never shortened."""
        self._not_before = max(self._not_before, not_before)

    def wait_s(self, now: float) -> float:
        """Return the seconds to wait from `now`, 0 or more."""
        return max(0.0, self._not_before - now)


class Upstream:
    """One deployment, the way to its provider, and its state."""

    def __init__(self, deployment: Deployment, provider: Provider, floor: RateFloor) -> None:
        self.deployment = deployment
        """What is offered."""
        self.provider = provider
        """Where it is asked."""
        self.floor = floor
        """Shared with the deployments that share its quota."""
        self.retries = RetryBudget()
        """Its own."""
        self.slots = asyncio.Semaphore(deployment.concurrency_max)
        """Exchanges that may be under way."""


def make_upstreams(catalog: Catalog, providers: Mapping[str, Provider]) -> dict[str, Upstream]:
    """Return the upstream of each deployment by name; `providers` is by provider's name.

    Deployments of the same model at the same provider share a quota, so one's rate limit is the
    other's too.
    """
    floors: dict[tuple[str, str], RateFloor] = {}
    upstreams = {}
    for name, deployment in catalog.deployments.items():
        provider_name = deployment.provider.name
        floor = floors.setdefault((provider_name, deployment.model), RateFloor())
        upstreams[name] = Upstream(deployment, providers[provider_name], floor)
    return upstreams

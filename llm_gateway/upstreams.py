"""What the gateway remembers of each deployment between calls: its load and health, the
provider's rate limit, and how many retries it may still cause. One process's knowledge, lost with
it; a reload of the configuration keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_gateway.answers import Completion
from llm_gateway.balancing import Load
from llm_gateway.breaker import CircuitBreaker
from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.pace import Pace
from llm_gateway.provider import Provider
from llm_gateway.slots import Slots

_RETRY_SHARE = 0.2
"""Retries for each first attempt, so that a provider in trouble is not loaded further."""
_RETRIES_SAVED_MAX = 10.0
"""What quiet times save up, and what a gateway begins with."""
_UNHEALTHY = {
    FailureKind.UNREACHABLE,
    FailureKind.TIMED_OUT,
    FailureKind.SERVER_ERROR,
    FailureKind.BROKEN_REPLY,
}
"""What a deployment is left alone for; a refused request says nothing of its health."""

_HUNG_S_MIN = 10.0
_HUNG_SHARE = 3.0
"""Silence for so many times as long as 95 of 100 answers take, and for so long at least, is a
failure where it outlasts a caller: else a provider that hangs would only ever look slow."""


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
        self.breaker = CircuitBreaker()
        """Whether it is to be left alone."""
        self.load = Load()
        """What it is doing."""
        self.pace = Pace(deployment.requests_per_minute, deployment.tokens_per_minute)
        """How much it is given in a minute."""
        self._slots = Slots(deployment.concurrency_max)

    @property
    def weight(self) -> int:
        """Share of the calls it is to get, among those of its step."""
        return self.deployment.weight

    async def enter(self, tenant: str) -> None:
        """Begin an exchange for a tenant; waits for a slot. Each is followed by `leave`."""
        self.load.begin()
        try:
            await self._slots.acquire(tenant)
        except BaseException:
            self.load.end(0.0, is_good=False)
            raise

    def enter_at_once(self) -> bool:
        """Begin an exchange like `enter`; False where a slot must be waited for."""
        if not self._slots.take():
            return False
        self.load.begin()
        return True

    def leave(self) -> None:
        """End an exchange of which nothing was learnt."""
        self._slots.release()
        self.load.end(0.0, is_good=False)

    def leave_unanswered(self, silent_s: float, *, now: float) -> bool:
        """End an exchange that was given up because its caller's time was over, and that had been
        silent for so long; returns whether that opened the breaker."""
        self.leave()
        is_hung = silent_s >= max(_HUNG_S_MIN, _HUNG_SHARE * (self.load.slow_s or 0.0))
        return is_hung and self.breaker.note_failure(now)

    def leave_after(
        self, result: Completion | ProviderError, elapsed_s: float, *, now: float, is_timed: bool
    ) -> bool:
        """End an exchange and learn from it; returns whether that opened or closed the breaker.

        Not `is_timed` is one whose time was its reader's.
        """
        is_good = isinstance(result, Completion)
        self._slots.release()
        self.load.end(elapsed_s, is_good=is_good and is_timed)
        if isinstance(result, Completion):
            self._slots.note_success()
            return self.breaker.note_success(now)
        if result.kind is FailureKind.RATE_LIMITED:
            self._slots.note_rate_limit(now - elapsed_s, now)
        return result.kind in _UNHEALTHY and self.breaker.note_failure(now)

    def take_over(self, before: Upstream) -> None:
        """Go on from what was known of the same deployment under an earlier configuration."""
        self.retries, self.breaker, self.load = before.retries, before.breaker, before.load
        self._slots = before._slots
        self._slots.resize(self.deployment.concurrency_max)
        if before.pace.limits == self.pace.limits:
            self.pace = before.pace


def make_upstreams(
    catalog: Catalog,
    providers: Mapping[str, Provider],
    before: Mapping[str, Upstream] | None = None,
) -> dict[str, Upstream]:
    """Return the upstream of each deployment by name; `providers` is by provider's name.

    Deployments of the same model at the same provider share a quota, so one's rate limit is the
    other's too. What `before` knows of a deployment that is the same model at the same place
    still holds.
    """
    known = before or {}
    floors = {_place(upstream.deployment): upstream.floor for upstream in known.values()}
    upstreams = {}
    for name, deployment in catalog.deployments.items():
        place = _place(deployment)
        floor = floors.setdefault(place, RateFloor())
        upstreams[name] = Upstream(deployment, providers[deployment.provider.name], floor)
        if name in known and _place(known[name].deployment) == place:
            upstreams[name].take_over(known[name])
    return upstreams


def _place(deployment: Deployment) -> tuple[str, str, str]:
    provider = deployment.provider
    return provider.name, provider.base_url, deployment.model

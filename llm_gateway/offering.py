"""What is offered at one moment: a catalog, the ways to its deployments, and what may leave for
them. A reload replaces it whole; a call keeps the one it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Self

from llm_gateway.balancing import ordered
from llm_gateway.calls import Call
from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.egress.guard import EgressGuard
from llm_gateway.permissions import check_permitted
from llm_gateway.upstreams import Upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """Who may answer one call."""

    tier: str
    """Whose deployments they are; not the one that was asked, where that was downgraded."""
    equals: tuple[Deployment, ...]
    """The first step's."""
    pool: tuple[Upstream, ...]
    """In the order in which they are asked, at least one."""
    hedge_share: float
    """Second attempts for slow calls, for each call."""
    larger_tier: str
    """Whose deployments the next are; may be empty."""
    larger: tuple[Upstream, ...]
    """Asked only where the messages do not fit the others."""

    def tier_served(self, by: Upstream, asked: str) -> str:
        """Return the tier that answered, empty where it is the one that was asked."""
        tier = self.larger_tier if by in self.larger else self.tier
        return "" if tier == asked else tier

    @property
    def first(self) -> Upstream:
        """Who is asked first."""
        return self.pool[0]


class Offering:
    """One state of the configuration."""

    def __init__(self, catalog: Catalog, upstreams: Mapping[str, Upstream]) -> None:
        """`upstreams` is by name of deployment."""
        self.catalog = catalog
        """What is offered."""
        self.upstreams = upstreams
        """Who answers."""
        self.guard = EgressGuard(catalog.egress)
        """What may leave."""
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Self]:
        """Count a call that uses it."""
        self._calls += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    @property
    def is_idle(self) -> bool:
        """No call uses it."""
        return not self._calls

    async def until_idle(self) -> None:
        """Return once no call uses it."""
        await self._idle.wait()

    def way(self, call: Call, *, is_downgraded: bool = False) -> Way:
        """Return who may answer a call; downgraded, from the tier that then stands in.

        Raises ModelNotOfferedError and PermissionDeniedError. Who may ask a tier may be answered
        by those that stand in for it, as long as the tenant's prompts may leave for them.
        """
        wanted = call.prompt.tier
        self.guard.permitted(call, self.catalog.pool(wanted))
        check_permitted(call.token, self.catalog, wanted)
        routing = self.catalog.routing
        steps = self._steps(call, routing.downgrade[wanted]) if is_downgraded else []
        tier = routing.downgrade[wanted] if steps else wanted
        steps = steps or self._steps(call, wanted)
        pool = ordered(steps)
        larger = routing.larger_window_tier
        more = ordered(self._steps(call, larger)) if larger and larger != tier else []
        return Way(
            tier=tier,
            equals=tuple(each.deployment for each in steps[0]),
            pool=tuple(pool),
            hedge_share=routing.hedge_share,
            larger_tier=larger,
            larger=tuple(upstream for upstream in more if upstream not in pool),
        )

    def _steps(self, call: Call, tier: str) -> list[list[Upstream]]:
        """Return those of a tier that the call may leave for, in steps of equals."""
        allowed = self.guard.allowed(call, tier, self.catalog.pool(tier))
        names = {deployment.name for deployment in allowed}
        steps = (
            [self.upstreams[name] for name in step if name in names]
            for step in self.catalog.steps(tier)
        )
        return [step for step in steps if step]

"""The attempts to have one call answered: who is asked, how often, and what each of them holds.

Which deployment comes next is decided in `routes.py`; the cache and the ledger's answers come
before all this (`gateway.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from common.errors import ServiceError
from llm_gateway.answers import Answer, Spend
from llm_gateway.call_telemetry import CallTelemetry
from llm_gateway.calls import Call
from llm_gateway.errors import ProviderBrokenReplyError
from llm_gateway.exchanges import Exchange, Exchanges, Outcome
from llm_gateway.failures import ProviderError
from llm_gateway.hedging import Hedging, Tried
from llm_gateway.ledger.claim import Claim
from llm_gateway.offering import Way
from llm_gateway.outlets import Outlet
from llm_gateway.routes import RetryPolicy, Route, timeout_error
from llm_gateway.starts import Starter
from llm_gateway.upstreams import Upstream


class Attempts:
    """Asks deployments until one has answered."""

    def __init__(
        self,
        starter: Starter,
        telemetry: CallTelemetry,
        policy: RetryPolicy,
        *,
        abandoned_drain_s: float,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`sleep` is how a retry is waited for; an exchange outlives its caller by
        `abandoned_drain_s` at most."""
        self._starter = starter
        self._policy = policy
        self._sleep = sleep
        self._hedging = Hedging()
        self._exchanges = Exchanges(telemetry, abandoned_drain_s=abandoned_drain_s)

    async def close(self) -> None:
        """End what outlived its callers."""
        await self._exchanges.close()

    def hurry(self, is_meant: Callable[[Call], bool]) -> None:
        """Read no longer what calls of these have left behind."""
        self._exchanges.hurry(is_meant)

    async def answer(self, call: Call, claim: Claim, way: Way, outlet: Outlet | None) -> Answer:
        """Return the first good answer; raises the ServiceError that ends the call, with what was
        paid for nothing in its metadata."""
        now = asyncio.get_running_loop().time
        route = Route(
            way.pool,
            self._policy,
            now=now,
            deadline=call.deadline,
            larger=way.larger,
            input_tokens=call.prompt.input_tokens_estimate,
        )
        spend = Spend()
        try:
            while True:
                step = route.next_step()
                if step.wait_s:
                    await claim.check()
                    await self._sleep(step.wait_s)
                tried = await self._try(call, claim, way, route, step.upstream, outlet)
                spend += tried.spend
                outcome = tried.outcome
                if not isinstance(outcome.result, ProviderError):
                    return Answer(
                        completion=outcome.result,
                        model=tried.upstream.deployment.name,
                        tier_served=way.tier_served(tried.upstream, call.prompt.tier),
                        spend=spend,
                        attempts=route.attempts,
                        elapsed_s=now() - call.arrived,
                    )
                if outlet is not None and outlet.has_started:
                    deployment = step.upstream.deployment
                    raise ProviderBrokenReplyError(
                        deployment.provider.name, deployment.name, outcome.result.problem
                    )
                route.note_failure(step.upstream, outcome.result)
        except ServiceError as error:
            error.metadata |= spend.as_metadata()  # what was paid for nothing is paid all the same
            raise

    async def _try(
        self,
        call: Call,
        claim: Claim,
        way: Way,
        route: Route,
        upstream: Upstream,
        outlet: Outlet | None,
    ) -> Tried:
        """Make one attempt, or two at a time where the first is slow."""

        async def attempt(by: Upstream, number: int, has_asked: asyncio.Event) -> Outcome:
            fallbacks = route.fallbacks(by)
            return await self._attempt(call, claim, by, fallbacks, outlet, number, has_asked)

        if outlet is None and way.hedge_share:
            return await self._hedging.run(attempt, route, upstream, way.hedge_share)
        outcome = await attempt(upstream, route.attempts, asyncio.Event())
        return Tried(upstream, outcome, outcome.spend)

    async def _attempt(
        self,
        call: Call,
        claim: Claim,
        upstream: Upstream,
        fallbacks: Sequence[Upstream],
        outlet: Outlet | None,
        attempt: int,
        has_asked: asyncio.Event,
    ) -> Outcome:
        try:
            async with asyncio.timeout_at(call.deadline):
                start = await self._starter.start(call, claim, upstream, fallbacks)
                has_asked.set()
                return await self._exchanges.run(
                    Exchange(
                        call=call,
                        upstream=upstream,
                        reservation=start.reservation,
                        claim=claim,
                        exchange_id=start.exchange_id,
                        outlet=outlet,
                        attempt=attempt,
                    )
                )
        except TimeoutError:
            raise timeout_error(upstream) from None

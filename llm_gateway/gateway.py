"""The path of a call: permission, ledger, route, reservation, exchange, answer.

Stages stand in the order in which they may refuse. A cache answers before the route is opened,
and the ledger before anything is sent or refused; the rest is in `attempts.py`, where a tenant's
quota is held with the run's reservation.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

from common.errors import ServiceError
from common.run_token import RunToken
from llm_gateway.answers import Answer, Delta, Spend
from llm_gateway.attempts import Attempts
from llm_gateway.backlog import Backlog
from llm_gateway.cache.answer_cache import AnswerCache
from llm_gateway.cache.place import CachePlace
from llm_gateway.cache.rules import CacheRules
from llm_gateway.call_telemetry import CallTelemetry
from llm_gateway.calls import Call
from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.histories import Histories
from llm_gateway.ledger.claim import Claim, ClaimLostError
from llm_gateway.ledger.entries import CallSums, RecordedAnswer
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.meter import Meter
from llm_gateway.offering import Offering, Way
from llm_gateway.outlets import Outlet, Started
from llm_gateway.permissions import is_model_permitted
from llm_gateway.routes import RetryPolicy, timeout_error
from llm_gateway.settlement import Settlement
from llm_gateway.starts import Starter
from llm_gateway.tokens import TokenCount, count_tokens
from llm_gateway.upstreams import Upstream


class Gateway:
    """Answers calls from the deployments of a catalog."""

    def __init__(
        self,
        offering: Offering,
        meter: Meter,
        ledger: Ledger,
        *,
        policy: RetryPolicy,
        output_tokens_default: int,
        abandoned_drain_s: float,
        cache: AnswerCache | None = None,
        backlog: Backlog | None = None,
        newer_metric_names: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`sleep` is how the gateway waits for a retry."""
        self._offering = offering
        self._meter = meter
        self._ledger = ledger
        self._cache = cache or AnswerCache(CacheRules(is_on=False))
        self._backlog = backlog or Backlog()
        self._histories = Histories()
        self._telemetry = CallTelemetry(newer_names=newer_metric_names)
        self._attempts = Attempts(
            Starter(meter, output_tokens_default=output_tokens_default),
            self._telemetry,
            policy,
            abandoned_drain_s=abandoned_drain_s,
            sleep=sleep,
        )
        self._settlement = Settlement(ledger, self._attempts.hurry)

    async def close(self) -> None:
        """End what outlived its callers."""
        await self._cache.close()
        await self._attempts.close()

    @property
    def offering(self) -> Offering:
        """What new calls get."""
        return self._offering

    @property
    def catalog(self) -> Catalog:
        """What is offered at present."""
        return self._offering.catalog

    def offer(self, offering: Offering) -> None:
        """Offer something else to new calls; those under way keep what they began with."""
        self._offering = offering

    def models(self, token: RunToken) -> list[Deployment]:
        """Return the deployments that a token permits, by name."""
        permitted = [
            deployment
            for name, deployment in self.catalog.deployments.items()
            if is_model_permitted(token, self.catalog, name)
        ]
        return sorted(permitted, key=lambda deployment: deployment.name)

    async def count_tokens(self, call: Call) -> TokenCount:
        """Count what a call would send to the deployment that its tier names first; raises what
        the call would raise before it asks."""
        offered = self._offering
        first = offered.way(call).equals[0]
        asked = await offered.guard.inspect(call)
        return await count_tokens(asked.prompt, first)

    async def settle(self, token: RunToken, prefix: str, *, grace_s: float) -> CallSums:
        """Return what calls of a run took that nobody waits for; raises LedgerUnavailableError."""
        return await self._settlement.settle(token, prefix, grace_s=grace_s)

    async def generate(self, call: Call) -> Answer:
        """Return the whole answer; raises a ServiceError for everything that can be foreseen."""
        return await self._answer(call, None)

    async def stream(self, call: Call) -> AsyncIterator[Started | Delta | Answer]:
        """Give the answer in pieces, then whole; raises like `generate`."""
        outlet = Outlet(self._backlog, call.token.tenant)
        task = asyncio.create_task(self._feed(call, outlet))
        try:
            async for piece in outlet.pieces():
                yield piece
        finally:
            outlet.close()
            task.cancel()

    async def _feed(self, call: Call, outlet: Outlet) -> None:
        try:
            outlet.end(await self._answer(call, outlet))
        except asyncio.CancelledError as error:
            outlet.fail(error)
            raise
        except Exception as error:  # whatever it is, it is the reader's
            outlet.fail(error)

    async def _answer(self, call: Call, outlet: Outlet | None) -> Answer:
        with self._offering.in_use() as offered:
            return await self._answer_from(offered, call, outlet)

    async def _answer_from(self, offered: Offering, call: Call, outlet: Outlet | None) -> Answer:
        way = offered.way(call, is_downgraded=await self._is_downgraded(offered, call))
        captures = offered.guard.policy_of(call).captures_content
        with self._telemetry.call(call, way.first.deployment, captures_content=captures) as seen:
            offered.guard.check_size(call)
            asked = await offered.guard.inspect(self._histories.recalled(call))
            seen.asked(asked)
            place = self._cache.place_of(asked, way.equals)
            answer = await self._once(offered, asked, way, outlet, place)
            if outlet is not None and outlet.started_at is not None:
                seen.first_piece_after(outlet.started_at - call.arrived)
            seen.answered(answer)
        return answer

    async def _is_downgraded(self, offered: Offering, call: Call) -> bool:
        """Whether the call's run is past its soft budget, for a tier that then has another."""
        routing = offered.catalog.routing
        if call.prompt.tier not in routing.downgrade:
            return False
        return await self._meter.share_spent(call.token) >= routing.downgrade_share

    async def _once(
        self,
        offered: Offering,
        call: Call,
        way: Way,
        outlet: Outlet | None,
        place: CachePlace | None,
    ) -> Answer:
        """Return the recorded answer of a repeat, or a cached one, else ask.

        A call is taken for one that nobody has made before, which most are: the ledger tells
        where it is not, in the transaction that every call needs.
        """
        entered: Claim | RecordedAnswer | None = self._ledger.enter_new(call)
        while True:
            if entered is None:
                entered = await self._enter(call, way.first)
            if isinstance(entered, RecordedAnswer):
                booked = await self._ledger.booked(call)
                return dataclasses.replace(_recorded(entered, call), booked=booked)
            try:
                answer = await self._make(offered, call, entered, way, outlet, place)
                if not entered.has_past:
                    return answer
                return dataclasses.replace(answer, booked=await self._ledger.booked(call))
            except ClaimLostError:
                pass  # there is an answer, or another process is about to have one
            finally:
                entered.leave()
            entered = None

    async def _make(
        self,
        offered: Offering,
        call: Call,
        claim: Claim,
        way: Way,
        outlet: Outlet | None,
        place: CachePlace | None,
    ) -> Answer:
        try:
            if place is None:
                return await self._attempts.answer(call, claim, way, outlet)
            return await self._cached(offered, call, claim, way, outlet, place)
        except ServiceError as error:
            await claim.check()
            if claim.has_past:  # told whole: its caller may not have heard of what was before
                error.metadata |= (await self._ledger.booked(call)).spend.as_metadata()
            raise

    async def _enter(self, call: Call, first: Upstream) -> Claim | RecordedAnswer:
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._ledger.enter(call)
        except TimeoutError:
            raise timeout_error(first) from None

    async def _cached(
        self,
        offered: Offering,
        call: Call,
        claim: Claim,
        way: Way,
        outlet: Outlet | None,
        place: CachePlace,
    ) -> Answer:
        """Return what stands in a place of the cache, else ask for all who want the same."""

        async def ask() -> Answer:
            with offered.in_use():
                return await self._attempts.answer(call, claim, way, outlet)

        try:
            found = await self._cache.answer(
                place, ask, begin=claim.join, end=claim.leave, deadline=call.deadline
            )
        except TimeoutError:
            raise timeout_error(way.first) from None
        if isinstance(found, Answer):
            return found
        await claim.keep(found)
        return _recorded(found, call)


def _recorded(recorded: RecordedAnswer, call: Call) -> Answer:
    """Return what a repeat gets: the answer, for nothing."""
    return Answer(
        completion=recorded.completion,
        model=recorded.model,
        spend=Spend(),
        attempts=0,
        elapsed_s=asyncio.get_running_loop().time() - call.arrived,
    )

"""The path of a call: permission, ledger, route, reservation, exchange, answer.

Each stage is one line of `_answer` or `_attempt`, in the order in which it may refuse. A cache
answers before the route is opened, and the ledger before anything is sent or refused; a tenant's
quota is held where the run's reservation is.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from common.errors import ServiceError
from common.run_token import RunToken
from llm_gateway.answers import Answer, Delta, Spend
from llm_gateway.cache.answer_cache import AnswerCache
from llm_gateway.cache.place import CachePlace
from llm_gateway.cache.rules import CacheRules
from llm_gateway.call_telemetry import CallTelemetry
from llm_gateway.calls import Call
from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.errors import ProviderBrokenReplyError
from llm_gateway.exchanges import Exchange, Exchanges, Outcome
from llm_gateway.failures import ProviderError
from llm_gateway.hedging import Hedging, Tried
from llm_gateway.ledger.claim import Claim, ClaimLostError
from llm_gateway.ledger.entries import RecordedAnswer
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.meter import Meter
from llm_gateway.offering import Offering, Way
from llm_gateway.outlets import Outlet, Started
from llm_gateway.permissions import is_model_permitted
from llm_gateway.routes import RetryPolicy, Route, timeout_error
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
        newer_metric_names: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`sleep` is how the gateway waits for a retry."""
        self._offering = offering
        self._meter = meter
        self._ledger = ledger
        self._policy = policy
        self._starter = Starter(meter, output_tokens_default=output_tokens_default)
        self._cache = cache or AnswerCache(CacheRules(is_on=False))
        self._sleep = sleep
        self._telemetry = CallTelemetry(newer_names=newer_metric_names)
        self._hedging = Hedging()
        self._exchanges = Exchanges(self._telemetry, abandoned_drain_s=abandoned_drain_s)

    async def close(self) -> None:
        """End what outlived its callers."""
        await self._cache.close()
        await self._exchanges.close()

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

    async def generate(self, call: Call) -> Answer:
        """Return the whole answer; raises a ServiceError for everything that can be foreseen."""
        return await self._answer(call, None)

    async def stream(self, call: Call) -> AsyncIterator[Started | Delta | Answer]:
        """Give the answer in pieces, then whole; raises like `generate`."""
        outlet = Outlet()
        task = asyncio.create_task(self._answer(call, outlet))
        task.add_done_callback(lambda done: _end(outlet, done))
        try:
            async for piece in outlet.pieces():
                yield piece
            answer = await task
            if not outlet.has_started:
                for piece in _whole(answer):
                    yield piece
            yield answer
        finally:
            outlet.close()
            task.cancel()

    async def _answer(self, call: Call, outlet: Outlet | None) -> Answer:
        with self._offering.in_use() as offered:
            return await self._answer_from(offered, call, outlet)

    async def _answer_from(self, offered: Offering, call: Call, outlet: Outlet | None) -> Answer:
        way = offered.way(call, is_downgraded=await self._is_downgraded(offered, call))
        captures = offered.guard.policy_of(call).captures_content
        with self._telemetry.call(call, way.first.deployment, captures_content=captures) as seen:
            asked = await offered.guard.inspect(call)
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
                return await self._ask(call, claim, way, outlet)
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
                return await self._ask(call, claim, way, outlet)

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

    async def _ask(self, call: Call, claim: Claim, way: Way, outlet: Outlet | None) -> Answer:
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
            return await self._attempt(call, claim, by, outlet, number, has_asked)

        if outlet is None and way.hedge_share:
            return await self._hedging.run(attempt, route, upstream, way.hedge_share)
        outcome = await attempt(upstream, route.attempts, asyncio.Event())
        return Tried(upstream, outcome, outcome.spend)

    async def _attempt(
        self,
        call: Call,
        claim: Claim,
        upstream: Upstream,
        outlet: Outlet | None,
        attempt: int,
        has_asked: asyncio.Event,
    ) -> Outcome:
        try:
            async with asyncio.timeout_at(call.deadline):
                start = await self._starter.start(call, claim, upstream)
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


def _recorded(recorded: RecordedAnswer, call: Call) -> Answer:
    """Return what a repeat gets: the answer, for nothing."""
    return Answer(
        completion=recorded.completion,
        model=recorded.model,
        spend=Spend(),
        attempts=0,
        elapsed_s=asyncio.get_running_loop().time() - call.arrived,
    )


def _whole(answer: Answer) -> Iterator[Started | Delta]:
    """Give the pieces of a stream whose answer came at once."""
    yield Started(answer.model)
    if answer.completion.reasoning:
        yield Delta(reasoning=answer.completion.reasoning)
    if answer.completion.text:
        yield Delta(text=answer.completion.text)


def _end(outlet: Outlet, task: asyncio.Task[Answer]) -> None:
    outlet.end()
    if not task.cancelled():
        task.exception()  # seen here, in case the reader has gone

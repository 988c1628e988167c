"""The path of a call: permission, ledger, route, reservation, exchange, answer.

Each stage is one line of `_answer` or `_attempt`, in the order in which it may refuse. The ledger
or a cache answers before the route is opened; a tenant's quota is held where the run's
reservation is; a circuit breaker is one more reason for a route to leave a deployment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

from common.errors import ServiceError
from common.run_token import RunToken
from llm_gateway.answers import Answer, Delta, Spend
from llm_gateway.call_telemetry import CallTelemetry
from llm_gateway.calls import Call
from llm_gateway.catalog import Catalog, Deployment
from llm_gateway.egress.guard import EgressGuard
from llm_gateway.errors import ProviderBrokenReplyError
from llm_gateway.exchanges import Exchange, Exchanges, Outcome
from llm_gateway.failures import ProviderError
from llm_gateway.ledger.claim import Claim, ClaimLostError
from llm_gateway.ledger.entries import RecordedAnswer
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.meter import Demand, Meter, Reservation
from llm_gateway.outlets import Outlet, Started
from llm_gateway.permissions import check_permitted, is_model_permitted
from llm_gateway.prompts import Prompt
from llm_gateway.routes import RetryPolicy, Route, timeout_error
from llm_gateway.upstreams import Upstream

_OUTPUT_TOKENS_MIN = 256
"""An answer shorter than this is no use to a caller who did not ask for one."""


class Gateway:
    """Answers calls from the deployments of a catalog."""

    def __init__(
        self,
        catalog: Catalog,
        upstreams: Mapping[str, Upstream],
        meter: Meter,
        ledger: Ledger,
        *,
        policy: RetryPolicy,
        output_tokens_default: int,
        abandoned_drain_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`upstreams` is by name of deployment; `sleep` is how the gateway waits for a retry."""
        self._catalog = catalog
        self._upstreams = upstreams
        self._meter = meter
        self._ledger = ledger
        self._policy = policy
        self._output_tokens_default = output_tokens_default
        self._sleep = sleep
        self._guard = EgressGuard(catalog.egress)
        self._telemetry = CallTelemetry()
        self._exchanges = Exchanges(self._telemetry, abandoned_drain_s=abandoned_drain_s)

    async def close(self) -> None:
        """End the exchanges that outlived their callers."""
        await self._exchanges.close()

    def models(self, token: RunToken) -> list[Deployment]:
        """Return the deployments that a token permits, by name."""
        permitted = [
            deployment
            for name, deployment in self._catalog.deployments.items()
            if is_model_permitted(token, self._catalog, name)
        ]
        return sorted(permitted, key=lambda deployment: deployment.name)

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
        pool = self._guard.permitted(call, self._catalog.pool(call.prompt.tier))
        check_permitted(call.token, self._catalog, call.prompt.tier)
        captures = self._guard.policy_of(call).captures_content
        with self._telemetry.call(call, pool[0], captures_content=captures) as seen:
            asked = await self._guard.inspect(call)
            answer = await self._once(asked, [self._upstreams[d.name] for d in pool], outlet)
            if outlet is not None and outlet.started_at is not None:
                seen.first_piece_after(outlet.started_at - call.arrived)
            seen.answered(answer)
        return answer

    async def _once(self, call: Call, pool: Sequence[Upstream], outlet: Outlet | None) -> Answer:
        """Return the recorded answer of a repeat, else ask."""
        while True:
            entered = await self._enter(call, pool[0])
            if isinstance(entered, RecordedAnswer):
                return _recorded(entered, call)
            try:
                return await self._ask(call, entered, pool, outlet)
            except ClaimLostError:
                continue  # another process was faster: its answer is to be waited for
            finally:
                entered.leave()

    async def _enter(self, call: Call, first: Upstream) -> Claim | RecordedAnswer:
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._ledger.enter(call)
        except TimeoutError:
            raise timeout_error(first) from None

    async def _ask(
        self, call: Call, claim: Claim, pool: Sequence[Upstream], outlet: Outlet | None
    ) -> Answer:
        now = asyncio.get_running_loop().time
        route = Route(pool, self._policy, now=now, deadline=call.deadline)
        spend = Spend()
        try:
            while True:
                step = route.next_step()
                if step.wait_s:
                    await self._sleep(step.wait_s)
                outcome = await self._attempt(call, claim, step.upstream, outlet, route.attempts)
                spend += outcome.spend
                if not isinstance(outcome.result, ProviderError):
                    return Answer(
                        completion=outcome.result,
                        model=step.upstream.deployment.name,
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

    async def _attempt(
        self,
        call: Call,
        claim: Claim,
        upstream: Upstream,
        outlet: Outlet | None,
        attempt: int,
    ) -> Outcome:
        demand = self._demand(call.prompt, upstream.deployment)
        try:
            async with asyncio.timeout_at(call.deadline):
                reservation = await self._meter.reserve(call.token, demand)
                exchange_id = await _hold(claim, upstream, reservation)
                return await self._exchanges.run(
                    Exchange(
                        call=call,
                        upstream=upstream,
                        reservation=reservation,
                        claim=claim,
                        exchange_id=exchange_id,
                        outlet=outlet,
                        attempt=attempt,
                    )
                )
        except TimeoutError:
            raise timeout_error(upstream) from None

    def _demand(self, prompt: Prompt, deployment: Deployment) -> Demand:
        wanted = prompt.output_tokens_max or self._output_tokens_default
        wanted = min(wanted, deployment.output_tokens_max or wanted)
        will_do = wanted if prompt.output_tokens_max else min(wanted, _OUTPUT_TOKENS_MIN)
        return Demand(
            input_tokens_max=prompt.input_tokens_bound,
            output_tokens_max=wanted,
            output_tokens_min=will_do,
            price=deployment.price,
        )


async def _hold(claim: Claim, upstream: Upstream, reservation: Reservation) -> str:
    """Wait for a slot and write the hold down; gives back what it has taken where that fails."""
    try:
        await upstream.slots.acquire()
        try:
            return await claim.hold(reservation, upstream.deployment.name)
        except BaseException:
            upstream.slots.release()
            raise
    except BaseException:
        reservation.settle(Spend())
        raise


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

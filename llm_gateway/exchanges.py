"""Exchanges with providers, each in a task of its own: it outlives a caller who goes away, for a
bounded time, because what the provider has begun is paid, and its usage and its answer must reach
the ledger.

Not a TaskGroup: there, one defect would end the exchanges of everybody else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from llm_gateway.answers import Completion, Delta, Spend, Tokens
from llm_gateway.call_telemetry import CallTelemetry
from llm_gateway.calls import Call
from llm_gateway.failures import ProviderError
from llm_gateway.ledger.claim import Claim
from llm_gateway.outlets import Outlet
from llm_gateway.prompts import estimate_tokens
from llm_gateway.reservation import Reservation
from llm_gateway.upstreams import Upstream

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an exchange ended, and what it took."""

    result: Completion | ProviderError
    """The reply, or why there is none."""
    spend: Spend
    """Settled already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """One attempt to have a call answered."""

    call: Call
    """What is asked."""
    upstream: Upstream
    """Of whom; one of its slots belongs to the exchange."""
    reservation: Reservation
    """What it may take; belongs to the exchange."""
    claim: Claim
    """The call's place in the ledger."""
    exchange_id: str
    """What the ledger calls it."""
    outlet: Outlet | None
    """Where pieces go; None for a whole reply."""
    attempt: int
    """Which of the call's attempts it is, from 1."""


class Exchanges:
    """Runs exchanges and owns those under way."""

    def __init__(self, telemetry: CallTelemetry, *, abandoned_drain_s: float) -> None:
        self._telemetry = telemetry
        self._abandoned_drain_s = abandoned_drain_s
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._abandoned: dict[asyncio.Task[Outcome], Call] = {}

    async def run(self, exchange: Exchange) -> Outcome:
        """Return how an exchange ended. Cancelled, it leaves the exchange to drain by itself."""
        exchange.claim.join()
        task = asyncio.create_task(self._work(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self._abandoned[task] = exchange.call
                task.add_done_callback(lambda done: self._abandoned.pop(done, None))
                asyncio.get_running_loop().call_later(self._abandoned_drain_s, self._give_up, task)
            raise

    def hurry(self, is_meant: Callable[[Call], bool]) -> None:
        """Read no longer what calls of these have left behind."""
        for task, call in list(self._abandoned.items()):
            if is_meant(call):
                self._give_up(task)

    async def close(self) -> None:
        """End what is still under way; each settles by an estimate."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, task: asyncio.Task[Outcome]) -> None:
        if self._abandoned.pop(task, None) is not None:  # once: its end is not to be disturbed
            task.cancel()

    async def _work(self, exchange: Exchange) -> Outcome:
        upstream, reservation = exchange.upstream, exchange.reservation
        observed = _Observed(exchange)
        outcome: Outcome | None = None
        now = asyncio.get_running_loop().time
        began = now()
        try:
            with self._telemetry.attempt(
                exchange.call, upstream.deployment, exchange.attempt
            ) as seen:
                try:
                    result: Completion | ProviderError = await upstream.provider.complete(
                        upstream.deployment,
                        exchange.call.prompt,
                        reservation.output_tokens_max,
                        None if exchange.outlet is None else observed.take,
                    )
                except ProviderError as error:
                    result = error
                    _log.warning("exchange failed", extra=_facts(exchange, error))
                outcome = Outcome(result, observed.spend(result))
                seen.ended(outcome.result)
            return outcome
        finally:
            # Reached without an outcome where it was cancelled while the provider worked.
            spend = observed.estimate() if outcome is None else outcome.spend
            self._leave(exchange, outcome, observed, now() - began)
            reservation.settle(spend)  # before the record, so that they share a transaction
            try:
                await _record(exchange, spend, outcome)
            finally:
                exchange.claim.leave()
                self._telemetry.record_spend(exchange.call.prompt.tier, upstream.deployment, spend)

    def _leave(
        self, exchange: Exchange, outcome: Outcome | None, observed: _Observed, elapsed_s: float
    ) -> None:
        """Give back the slot, and let the upstream learn how it went."""
        upstream, now = exchange.upstream, asyncio.get_running_loop().time()
        if outcome is not None:
            taken = outcome.spend.tokens.total
            upstream.pace.correct(taken - exchange.call.prompt.input_tokens_estimate, now)
            is_timed = exchange.outlet is None
            if upstream.leave_after(outcome.result, elapsed_s, now=now, is_timed=is_timed):
                self._tell_of_breaker(upstream, now)
        elif exchange.call.is_late(now) and not observed.has_begun:
            if upstream.leave_unanswered(elapsed_s, now=now):
                self._tell_of_breaker(upstream, now)
        else:
            upstream.leave()  # a caller who has lost interest says nothing of the provider

    def _tell_of_breaker(self, upstream: Upstream, now: float) -> None:
        is_open = upstream.breaker.is_open
        self._telemetry.breaker_changed(upstream.deployment, is_open=is_open)
        _log.warning(
            "a deployment is left alone" if is_open else "a deployment is asked again",
            extra={
                "provider": upstream.deployment.provider.name,
                "model": upstream.deployment.name,
                "for_s": round(upstream.breaker.wait_s(now), 3),
            },
        )


async def _record(exchange: Exchange, spend: Spend, outcome: Outcome | None) -> None:
    result = None if outcome is None else outcome.result
    completion = result if isinstance(result, Completion) else None
    model = exchange.upstream.deployment.name
    await exchange.claim.settle(exchange.exchange_id, model, spend, completion)


class _Observed:
    """What was seen of an exchange, for when the provider does not say what it took."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._bytes = 0

    @property
    def has_begun(self) -> bool:
        """A piece has come."""
        return self._bytes > 0

    def take(self, delta: Delta) -> None:
        """Count a piece and pass it on."""
        self._bytes += delta.size_bytes
        assert self._exchange.outlet is not None
        self._exchange.outlet.put(self._exchange.upstream.deployment.name, delta)

    def spend(self, result: Completion | ProviderError) -> Spend:
        """Return what the exchange took: as reported, else estimated, else nothing."""
        if result.tokens is not None:
            return self._priced(result.tokens, is_estimated=False)
        if isinstance(result, ProviderError):
            return self.estimate() if result.may_be_billed or self._bytes else Spend()
        if not self._bytes:
            self._bytes = result.size_bytes
        return self.estimate()

    def estimate(self) -> Spend:
        """Return the probable cost of what was sent and received so far."""
        output = min(estimate_tokens(self._bytes), self._exchange.reservation.output_tokens_max)
        sent = self._exchange.call.prompt.input_tokens_estimate
        return self._priced(Tokens(input=sent, output=output), is_estimated=True)

    def _priced(self, tokens: Tokens, *, is_estimated: bool) -> Spend:
        cost = self._exchange.upstream.deployment.price.cost_usd_nanos(tokens)
        return Spend(tokens=tokens, cost_usd_nanos=cost, is_estimated=is_estimated)


def _facts(exchange: Exchange, error: ProviderError) -> dict[str, object]:
    deployment = exchange.upstream.deployment
    return {
        "provider": deployment.provider.name,
        "model": deployment.name,
        "attempt": exchange.attempt,
        "kind": error.kind.value,
        "problem": error.problem,
    }

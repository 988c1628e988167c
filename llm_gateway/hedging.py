"""A second attempt elsewhere for a call that takes longer than most: whoever answers first is
taken, and the other is left to drain, since it is paid all the same.

How many there may be is a share of all calls, so that a slow provider does not double its load.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from common import telemetry_names as names
from common.telemetry import meter
from llm_gateway.answers import Completion, Spend
from llm_gateway.exchanges import Outcome
from llm_gateway.failures import ProviderError
from llm_gateway.routes import Route
from llm_gateway.upstreams import Upstream

_SAVED_MAX = 10.0
"""Second attempts that quiet times save up."""
Attempt = Callable[[Upstream, int, asyncio.Event], Awaitable[Outcome]]
"""Makes an attempt with its number among the call's; sets the event once the provider is asked."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """What one step of a route came to."""

    upstream: Upstream
    """Whose outcome it is."""
    outcome: Outcome
    """How it ended."""
    spend: Spend
    """What it took, a second attempt included; an estimate where that has not ended."""


class _Running:
    """An attempt under way."""

    def __init__(self, attempt: Attempt, upstream: Upstream, number: int) -> None:
        self.upstream = upstream
        self.has_asked = asyncio.Event()
        self.task = asyncio.ensure_future(attempt(upstream, number, self.has_asked))

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs, and where it raised."""
        is_over = self.task.done() and not self.task.cancelled()
        return self.task.result() if is_over and self.task.exception() is None else None


class Hedging:
    """Makes second attempts within their share."""

    def __init__(self) -> None:
        self._saved = 0.0
        self._count = meter(__name__).create_counter(names.METRIC_GATEWAY_HEDGES)

    async def run(self, attempt: Attempt, route: Route, first: Upstream, share: float) -> Tried:
        """Ask `first`, and after the time in which it nearly always answers another one too.

        Raises what the attempt with `first` raises, where the other has no answer either.
        """
        self._saved = min(_SAVED_MAX, self._saved + share)
        running = [_Running(attempt, first, route.attempts)]
        try:
            await asyncio.wait([running[0].task], timeout=self._patience_s(first))
            other = None if running[0].task.done() else route.hedge(first)
            if other is not None:
                self._saved -= 1
                running.append(_Running(attempt, other, route.attempts))
            best = await _first_good(running)
            if other is not None:
                won = best is running[1]
                self._count.add(1, {names.STATUS: "won" if won else "lost"})
                _note_failure(route, running[1])
            outcome = best.task.result()
            return Tried(best.upstream, outcome, _spend(running, outcome))
        finally:
            for each in running:
                each.task.cancel()
            await asyncio.gather(*(each.task for each in running), return_exceptions=True)

    def _patience_s(self, upstream: Upstream) -> float | None:
        return upstream.load.slow_s if self._saved >= 1 else None


async def _first_good(running: list[_Running]) -> _Running:
    """Return the first that answers, else the first of all."""
    left = list(running)
    while left:
        await asyncio.wait([each.task for each in left], return_when=asyncio.FIRST_COMPLETED)
        for each in [each for each in left if each.task.done()]:
            left.remove(each)
            if each.outcome is not None and isinstance(each.outcome.result, Completion):
                return each
    return running[0]


def _note_failure(route: Route, hedge: _Running) -> None:
    if hedge.outcome is not None and isinstance(hedge.outcome.result, ProviderError):
        route.note_hedge_failure(hedge.upstream, hedge.outcome.result)


def _spend(running: list[_Running], outcome: Outcome) -> Spend:
    spend = Spend()
    for each in running:
        if each.outcome is not None:
            spend += each.outcome.spend
        elif not each.task.done() and each.has_asked.is_set():
            # It goes on, and will probably take what the one that has answered took.
            tokens = outcome.spend.tokens
            cost = each.upstream.deployment.price.cost_usd_nanos(tokens)
            spend += Spend(tokens=tokens, cost_usd_nanos=cost, is_estimated=True)
    return spend

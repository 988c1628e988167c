"""The one owner of retries: which deployment is asked next, after how long, and when to give up.

Pure decisions over a clock and a source of jitter that are passed in; `gateway.py` acts on them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from common.errors import ServiceError
from llm_gateway.errors import (
    ContextWindowExceededError,
    ProviderBrokenReplyError,
    ProviderCredentialError,
    ProviderRateLimitedError,
    ProviderRejectedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.upstreams import Upstream

_RETRIED = {
    FailureKind.UNREACHABLE,
    FailureKind.TIMED_OUT,
    FailureKind.SERVER_ERROR,
    FailureKind.RATE_LIMITED,
    FailureKind.BROKEN_REPLY,
}
_TELLING = (
    FailureKind.REJECTED,
    FailureKind.UNREACHABLE,
    FailureKind.SERVER_ERROR,
    FailureKind.TIMED_OUT,
    FailureKind.BROKEN_REPLY,
    FailureKind.RATE_LIMITED,
    FailureKind.CREDENTIAL,
    FailureKind.CONTEXT_OVERFLOW,
)
"""Which of several failures the caller hears of: the verdict on the request itself, else the one
most likely to pass with time."""
_RATE_FLOOR_S_MAX = 300.0
"""However long a provider asks to wait, it is asked again after this: limits are lifted early."""
_PACE_WAIT_S_MAX = 60.0
"""Longest wait for a deployment's own requests or tokens a minute."""
_RETRY_AFTER_S = 1.0
"""What callers are told to wait where no provider said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The numbers behind the decisions."""

    attempts_max: int = 6
    """Exchanges for one call, over all deployments."""
    attempts_per_deployment_max: int = 3
    """Exchanges for one call with one deployment, unless it only limits the rate and is the last
    one left."""
    backoff_s: float = 0.5
    """Longest wait before the first retry; it doubles with each."""
    backoff_s_max: float = 8.0
    """Where the doubling ends."""
    wait_s_max: float = 2.0
    """Where a wait would be longer, a provider's or one's own, the next deployment is asked
    instead."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do next."""

    upstream: Upstream
    """Whom to ask."""
    wait_s: float
    """After how long."""


class Route:
    """One call's way through the deployments that may answer it."""

    def __init__(
        self,
        pool: Sequence[Upstream],
        policy: RetryPolicy,
        *,
        now: Callable[[], float],
        deadline: float | None,
        larger: Sequence[Upstream] = (),
        input_tokens: int = 0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`pool` is in order of preference; `now` and `deadline` are of one clock, in seconds.

        Those of `larger` are asked last, and only once the messages turned out not to fit.
        `input_tokens` is what the prompt probably has.
        """
        self._pool = list(pool)
        self._larger = tuple(larger)
        self._policy = policy
        self._now = now
        self._deadline = deadline
        self._input_tokens = input_tokens
        self._jitter = jitter
        self._tried_here = 0
        self._backoff_s = 0.0
        self._asked_to_wait_s = 0.0
        self._failures: list[tuple[Upstream, ProviderError]] = []
        self.attempts = 0
        """Exchanges begun."""

    def next_step(self) -> Step:
        """Return whom to ask next; raises the ServiceError that ends the call."""
        while self._pool and self.attempts < self._policy.attempts_max:
            upstream = self._pool[0]
            if self._deadline is not None and self._now() >= self._deadline:
                raise timeout_error(upstream)
            wait_s = self._wait_s(upstream)
            if (
                wait_s is not None
                and self._is_healthy(upstream, wait_s)
                and self._may_retry(upstream)
            ):
                return self._begin(upstream, wait_s)
            self._leave()
        raise self._final_error()

    def note_failure(self, upstream: Upstream, error: ProviderError) -> None:
        """Take in how the last step failed."""
        self._failures.append((upstream, error))
        if error.kind is FailureKind.REJECTED:
            self._pool.clear()
        elif error.kind is FailureKind.CREDENTIAL:
            refused = upstream.deployment.provider
            self._keep(lambda other: other.deployment.provider is not refused)
        elif error.kind is FailureKind.CONTEXT_OVERFLOW:
            window = upstream.deployment.context_tokens_max
            self._pool += self._larger
            self._larger = ()
            self._keep(lambda other: _may_be_larger(other, upstream, window))
        elif error.kind in _RETRIED:
            self._plan_retry(upstream, error)

    def fallbacks(self, of: Upstream) -> list[Upstream]:
        """Return who else may be asked if one fails."""
        return [other for other in self._pool if other is not of]

    def hedge(self, beside: Upstream) -> Upstream | None:
        """Begin an attempt with somebody else while one is under way; None where nobody is free
        at once."""
        now = self._now()
        if self.attempts >= self._policy.attempts_max:
            return None
        for other in self._pool:
            is_free = not other.floor.wait_s(now) and not other.pace.wait_s(self._input_tokens, now)
            if other is not beside and is_free and other.breaker.admits(now):
                other.retries.note_first_attempt()
                other.pace.begin(self._input_tokens, now)
                self.attempts += 1
                return other
        return None

    def note_hedge_failure(self, upstream: Upstream, error: ProviderError) -> None:
        """Take in how an attempt of `hedge` failed: it changes nothing for the one beside it."""
        self._failures.append((upstream, error))
        self._raise_floor(upstream, error)

    def _raise_floor(self, upstream: Upstream, error: ProviderError) -> None:
        if error.kind is FailureKind.RATE_LIMITED and error.retry_after_s is not None:
            held_s = min(error.retry_after_s, _RATE_FLOOR_S_MAX)
            upstream.floor.raise_to(self._now() + held_s)

    def _plan_retry(self, upstream: Upstream, error: ProviderError) -> None:
        self._raise_floor(upstream, error)
        is_rate_limit = error.kind is FailureKind.RATE_LIMITED
        is_last_resort = is_rate_limit and len(self._pool) == 1
        if self._tried_here >= self._policy.attempts_per_deployment_max and not is_last_resort:
            self._leave()
            return
        self._backoff_s = self._jittered_s(self._tried_here - 1)
        self._asked_to_wait_s = error.retry_after_s or 0.0

    def _wait_s(self, upstream: Upstream) -> float | None:
        """Return how long to wait for an upstream; None where that is not worth it."""
        now = self._now()
        left_s = _PACE_WAIT_S_MAX if self._deadline is None else self._deadline - now
        patience_s = min(self._policy.wait_s_max, left_s)
        pace_s = upstream.pace.wait_s(self._input_tokens, now)
        # A pace is our own queue, as slots are: where nobody else is left it is worth its time.
        if pace_s > (min(left_s, _PACE_WAIT_S_MAX) if len(self._pool) == 1 else patience_s):
            self._note_rate_limit(upstream, pace_s)
            return None
        polite_s = self._polite_wait_s(upstream, now, patience_s)
        return None if polite_s is None else max(polite_s, pace_s)

    def _polite_wait_s(self, upstream: Upstream, now: float, patience_s: float) -> float | None:
        """Return how long the provider is to be left in peace; None where that is too long."""
        floor_s = upstream.floor.wait_s(now)
        asked_s = max(self._asked_to_wait_s, floor_s)
        if asked_s > patience_s:
            if floor_s == asked_s:
                self._note_rate_limit(upstream, floor_s)
            return None
        if asked_s:
            # Everybody was asked to wait for the same moment: do not all come back in it.
            return min(patience_s, asked_s + (self._backoff_s or self._jittered_s(0)))
        if self._backoff_s <= patience_s:
            return self._backoff_s
        # Longer is for asking elsewhere meanwhile; with nobody else left, patience is what remains.
        has_time = patience_s == self._policy.wait_s_max
        return patience_s if len(self._pool) == 1 and has_time else None

    def _jittered_s(self, doublings: int) -> float:
        longest_s = min(self._policy.backoff_s_max, self._policy.backoff_s * 2.0**doublings)
        return self._jitter() * longest_s

    def _may_retry(self, upstream: Upstream) -> bool:
        """Spend a retry where this is one. Waiting out a rate limit loads nobody and is free."""
        if not self._tried_here:
            return True
        _, last_error = self._failures[-1]
        return last_error.kind is FailureKind.RATE_LIMITED or upstream.retries.take()

    def _is_healthy(self, upstream: Upstream, wait_s: float) -> bool:
        """Whether its breaker lets a call through; of an open one this call is the probe."""
        now = self._now()
        if upstream.breaker.admits(now + wait_s):
            return True
        left_alone_s = upstream.breaker.wait_s(now)
        sick = ProviderError(FailureKind.UNREACHABLE, "left alone", retry_after_s=left_alone_s)
        self._failures.append((upstream, sick))
        return False

    def _begin(self, upstream: Upstream, wait_s: float) -> Step:
        if not self._tried_here:
            upstream.retries.note_first_attempt()
        upstream.pace.begin(self._input_tokens, self._now() + wait_s)
        self._tried_here += 1
        self.attempts += 1
        return Step(upstream, wait_s)

    def _leave(self) -> None:
        self._keep(lambda other: other is not self._pool[0])

    def _keep(self, wanted: Callable[[Upstream], bool]) -> None:
        self._pool = [upstream for upstream in self._pool if wanted(upstream)]
        self._tried_here, self._backoff_s, self._asked_to_wait_s = 0, 0.0, 0.0

    def _note_rate_limit(self, upstream: Upstream, wait_s: float) -> None:
        limited = ProviderError(FailureKind.RATE_LIMITED, "noted before", retry_after_s=wait_s)
        self._failures.append((upstream, limited))

    def _final_error(self) -> ServiceError:
        upstream, error = min(reversed(self._failures), key=lambda f: _TELLING.index(f[1].kind))
        return service_error(upstream, error, self.attempts)


def service_error(upstream: Upstream, error: ProviderError, attempts: int) -> ServiceError:
    """Return what the caller hears of a failure."""
    deployment = upstream.deployment
    provider, model = deployment.provider.name, deployment.name
    wait_s = _RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    match error.kind:
        case FailureKind.RATE_LIMITED:
            return ProviderRateLimitedError(provider, model, wait_s)
        case FailureKind.CREDENTIAL:
            return ProviderCredentialError(provider, model)
        case FailureKind.CONTEXT_OVERFLOW:
            return ContextWindowExceededError(model, deployment.context_tokens_max)
        case FailureKind.REJECTED:
            return ProviderRejectedError(provider, model, error.http_status)
        case FailureKind.BROKEN_REPLY:
            return ProviderBrokenReplyError(provider, model, error.problem)
        case _:
            return ProviderUnavailableError(provider, model, attempts, wait_s)


def timeout_error(upstream: Upstream) -> ProviderTimeoutError:
    """Return what the caller hears where its own deadline passed."""
    deployment = upstream.deployment
    return ProviderTimeoutError(deployment.provider.name, deployment.name)


def _may_be_larger(other: Upstream, full: Upstream, window: int) -> bool:
    if other is full:
        return False
    size = other.deployment.context_tokens_max
    return not size or not window or size > window

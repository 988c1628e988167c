"""What a run has spent of its limits, and what it may still spend.

A part of the money, the tokens and the time is kept back from the run's work, so that a last
answer can be asked for when the rest is gone. The gateway enforces money and tokens call by call;
this module decides how much of them the run's tokens permit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation, Usage

from common.errors import ReceivedError
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.limits import RunLimits

LIMIT_NAMES = frozenset(
    {"turns_max", "time_max", "sub_calls_max", "tokens_max", "cost_usd_nanos_max"}
)
_TIME_RESERVE_SHARE = 0.1
_TIME_RESERVE_MAX_S = 30.0
_CLOCK_SLACK_S = 0.25
_RESERVE_PART = 10
"""One part in this many of money and tokens is kept back, or what a last call takes at worst."""
_RESERVE_PART_MAX = 2
"""But at most one part in this many: a small limit must leave something for the work."""


class LimitReachedError(Exception):
    """A limit of the run stops the work; the run goes on to its last answer.

    Never leaves the loop, so it is no ServiceError.
    """

    def __init__(self, limit: str, *, value: int, spent: int) -> None:
        super().__init__(f"{limit} of {value} reached with {spent}")
        self.limit = limit
        self.value = value
        self.spent = spent


def limit_in(error: ReceivedError) -> str:
    """Return the limit of the run that a failed call tells of, named as in the contract; empty
    where the error is another one."""
    limit = error.metadata.get("limit", "")
    is_limit = error.reason == ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED
    return limit if is_limit and limit in LIMIT_NAMES else ""


def usage_of(generation: Generation) -> Usage:
    """Return what an answered call counts for: where it was begun before, all that the ledger has
    of it, since whoever began it died before that was written down."""
    is_repeat = generation.HasField("recorded_usage")
    return generation.recorded_usage if is_repeat else generation.usage


def usage_in(error: ReceivedError) -> Usage:
    """Return what a failed call took all the same, as the gateway tells; empty where nothing."""
    usage = Usage(estimated=error.metadata.get("usage_estimated") == "true")
    for field in ("input_tokens", "output_tokens", "cost_usd_nanos"):
        text = error.metadata.get(field, "")
        setattr(usage, field, int(text) if text.isdecimal() else 0)
    return usage


@dataclasses.dataclass(frozen=True)
class Allowance:
    """Tokens and money that may be spent."""

    tokens_max: int
    """Input and output tokens."""
    cost_usd_nanos_max: int
    """Money, in billionths of a US dollar."""


class Budget:
    """The meter of one run."""

    def __init__(
        self,
        limits: RunLimits,
        *,
        last_call: Allowance,
        elapsed_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock, for a run that began `elapsed_s` ago. `last_call` is what a last answer
        may take at worst."""
        self.limits = limits
        self.usage = Usage()
        self.turns = 0
        self.sub_calls = 0
        self.sub_calls_of_children = 0
        self._clock = clock
        self._started = clock() - elapsed_s
        self._is_reserve_open = False
        self._last_call = last_call

    def add(self, usage: Usage) -> None:
        """Count one model call, once."""
        add_usage(self.usage, usage)

    @property
    def sub_calls_in_all(self) -> int:
        """Sub-calls made so far, those of child runs included."""
        return self.sub_calls + self.sub_calls_of_children

    @property
    def tokens(self) -> int:
        """Tokens spent so far."""
        return self.usage.input_tokens + self.usage.output_tokens

    @property
    def work_left_s(self) -> float:
        """Seconds left for turns, the reserve not counted before it is open; at least 0."""
        if self._is_reserve_open:
            return self.left_s
        reserve_s = min(self.limits.time_max_s * _TIME_RESERVE_SHARE, _TIME_RESERVE_MAX_S)
        return max(0.0, self.left_s - reserve_s)

    @property
    def is_work_over(self) -> bool:
        """True where a call that ran into its deadline ran into the end of the work. Clocks and
        deadlines of two processes differ by some milliseconds."""
        return self.work_left_s < _CLOCK_SLACK_S

    @property
    def left_s(self) -> float:
        """Seconds left of the run; at least 0."""
        return max(0.0, self.limits.time_max_s - (self._clock() - self._started))

    def open_reserve(self) -> None:
        """Let the last answer have the time that was kept back for it."""
        self._is_reserve_open = True

    def count_turn(self) -> int:
        """Count a turn and return its number, from 1."""
        self.turns += 1
        return self.turns

    def exhausted(self) -> LimitReachedError | None:
        """Return the limit that leaves nothing for another turn; None where there is something."""
        if not self.work_left_s:
            return self.reached("time_max")
        allowed = self.work_allowance()
        if self.tokens >= allowed.tokens_max:
            return self.reached("tokens_max")
        if self.usage.cost_usd_nanos >= allowed.cost_usd_nanos_max > 0:
            return self.reached("cost_usd_nanos_max")
        return self.reached("turns_max") if self.turns >= self.limits.turns_max else None

    def check_overspent(self) -> None:
        """Raise LimitReachedError where more is spent than the work may spend. The gateway sees
        to that before each call, unless it was restarted and forgot what a cell had spent."""
        allowed = self.work_allowance()
        if self.tokens > allowed.tokens_max:
            raise self.reached("tokens_max")
        if self.usage.cost_usd_nanos > allowed.cost_usd_nanos_max:
            raise self.reached("cost_usd_nanos_max")

    def reached(self, limit: str) -> LimitReachedError:
        """Return the error for a limit, named as in the contract, with what was spent of it."""
        value, spent = {
            "turns_max": (self.limits.turns_max, self.turns),
            "time_max": (self.limits.time_max_s, self.limits.time_max_s - self.left_s),
            "sub_calls_max": (self.limits.sub_calls_max, self.sub_calls_in_all),
            "tokens_max": (self.limits.tokens_max, self.tokens),
            "cost_usd_nanos_max": (self.limits.cost_usd_nanos_max, self.usage.cost_usd_nanos),
        }[limit]
        return LimitReachedError(limit, value=int(value), spent=int(spent))

    def work_allowance(self) -> Allowance:
        """Return what turns and sub-calls may spend: the limits without the reserve."""
        limits = self.limits
        return Allowance(
            tokens_max=_without_reserve(limits.tokens_max, self._last_call.tokens_max),
            cost_usd_nanos_max=_without_reserve(
                limits.cost_usd_nanos_max, self._last_call.cost_usd_nanos_max
            ),
        )

    def whole_allowance(self) -> Allowance:
        """Return what the last answer may spend: all that is left of the limits."""
        return Allowance(self.limits.tokens_max, self.limits.cost_usd_nanos_max)


def _without_reserve(limit: int, last_call: int) -> int:
    kept = max(limit // _RESERVE_PART, last_call)
    return limit - min(kept, limit // _RESERVE_PART_MAX)

"""What a child run may consume: a part of what its parent has left, by arithmetic alone.

Parts are exclusive while a child lives. So that they are foreseeable, what a child does not ask
for is an equal part of what is left: one for the parent, and one for each child that its batch
has still to begin.
"""

from __future__ import annotations

import dataclasses

from fathom.orchestrator.v1.run_pb2 import Limits

from common.errors import InvalidFieldError
from orchestrator.errors import ChildRunRefusedError, NothingLeftError

_TIME_MIN_S = 1.0
_MARGIN_SHARE = 0.1
_MARGIN_MAX_S = 5.0
_TIME_RESERVE_SHARE = 0.1
_TIME_RESERVE_MAX_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Left:
    """What a run has left for child runs: what it may spend on its work, without what it has
    spent and what is kept for children that live."""

    tokens: int
    """Input and output together."""
    cost_usd_nanos: int
    """Money, in billionths of a US dollar."""
    sub_calls: int
    """Calls of its code."""
    time_s: float
    """Seconds of its work."""
    live: int
    """Runs that may live at a time, below it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What a child gets."""

    limits: Limits
    """Its limits, every one of them set."""
    live: int
    """Of the runs that may live below the parent, those that it and all below it may be."""


def time_for_children_s(time_max_s: float, elapsed_s: float) -> float:
    """Return the seconds that a child may take, so that its answer comes while its parent can
    still use it."""
    reserve_s = min(time_max_s * _TIME_RESERVE_SHARE, _TIME_RESERVE_MAX_S)
    left_s = time_max_s - reserve_s - elapsed_s
    return left_s - min(max(left_s, 0.0) * _MARGIN_SHARE, _MARGIN_MAX_S)


def check_asked(asked: Limits) -> None:
    """Raise InvalidFieldError where no child could have such limits."""
    least = {
        "turns_max": 1,
        "sub_calls_max": 0,
        "tokens_max": 1,
        "cost_usd_nanos_max": 0,
        "depth_max": 0,
        "children_live_max": 0,
    }
    wrong = {
        f"limits.{name}": f"must be at least {bound}"
        for name, bound in least.items()
        if asked.HasField(name) and getattr(asked, name) < bound  # type: ignore[arg-type]
    }
    if asked.HasField("time_max") and asked.time_max.ToNanoseconds() <= 0:
        wrong["limits.time_max"] = "must be above 0"
    if wrong:
        raise InvalidFieldError.many(wrong)


def check_may_have_children(run: str, parent: Limits) -> None:
    """Raise ChildRunRefusedError for a run that may have none."""
    if parent.depth_max <= 0:
        why = "depth_max is reached; use llm_query, or do it in code"
        raise ChildRunRefusedError(run, why, limit="depth_max")
    if parent.children_live_max <= 0:
        why = "children_live_max leaves none; use llm_query, or do it in code"
        raise ChildRunRefusedError(run, why, limit="children_live_max")


def part_for_child(asked: Limits, *, parent: Limits, left: Left, siblings: int) -> Part | None:
    """Return what a child gets; None where it has to wait for another one to end.

    `siblings` are those of its batch that have not been begun, it included. More than is left is
    lowered to that. Raises NothingLeftError.
    """
    _check_left(parent, left)
    if left.live <= 0:
        return None
    depth_max = parent.depth_max - 1
    if asked.HasField("depth_max"):
        depth_max = min(depth_max, asked.depth_max)
    live = _live(asked, left.live, siblings, depth_max)
    limits = Limits(
        turns_max=min(asked.turns_max or parent.turns_max, parent.turns_max),
        sub_calls_max=_share(asked, "sub_calls_max", left.sub_calls, siblings),
        tokens_max=max(_share(asked, "tokens_max", left.tokens, siblings), 1),
        cost_usd_nanos_max=_share(asked, "cost_usd_nanos_max", left.cost_usd_nanos, siblings),
        depth_max=depth_max,
        children_live_max=live - 1,
    )
    time_s = left.time_s
    if asked.HasField("time_max"):
        time_s = min(time_s, asked.time_max.ToNanoseconds() / 1e9)
    limits.time_max.FromNanoseconds(int(time_s * 1e9))
    return Part(limits=limits, live=live)


def _check_left(parent: Limits, left: Left) -> None:
    if left.time_s < _TIME_MIN_S:
        time_max_s = parent.time_max.ToNanoseconds() // 10**9
        raise NothingLeftError("time_max", value=time_max_s, spent=time_max_s)
    if left.tokens <= 0:
        value = parent.tokens_max
        raise NothingLeftError("tokens_max", value=value, spent=value - left.tokens)
    if left.cost_usd_nanos <= 0 < parent.cost_usd_nanos_max:
        value = parent.cost_usd_nanos_max
        raise NothingLeftError("cost_usd_nanos_max", value=value, spent=value - left.cost_usd_nanos)


def _share(asked: Limits, name: str, left: int, siblings: int) -> int:
    left = max(left, 0)
    if asked.HasField(name):  # type: ignore[arg-type]  # a field's name
        return min(int(getattr(asked, name)), left)
    return left // (siblings + 1)


def _live(asked: Limits, left: int, siblings: int, depth_max: int) -> int:
    """Return how many runs a child and all below it may be at a time, at least itself."""
    if depth_max == 0:
        return 1
    if asked.HasField("children_live_max"):
        return min(1 + asked.children_live_max, left)
    return max(left // min(siblings, left), 1)

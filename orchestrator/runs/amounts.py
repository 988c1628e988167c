"""Sums of what calls to models took."""

from __future__ import annotations

from fathom.gateway.v1.generation_pb2 import Usage

_AMOUNTS = (
    *("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"),
    *("cost_usd_nanos", "calls"),
)


def add_usage(total: Usage, usage: Usage) -> None:
    """Add one call's usage to a total."""
    total.input_tokens += usage.input_tokens
    total.output_tokens += usage.output_tokens
    total.cached_input_tokens += usage.cached_input_tokens
    total.reasoning_tokens += usage.reasoning_tokens
    total.cost_usd_nanos += usage.cost_usd_nanos
    total.calls += usage.calls
    total.estimated = total.estimated or usage.estimated


def move_usage(rest: Usage, left: Usage) -> None:
    """Take as much of `rest` from both as there is in `left`."""
    for name in _AMOUNTS:
        taken = min(getattr(rest, name), getattr(left, name))
        setattr(rest, name, getattr(rest, name) - taken)
        setattr(left, name, getattr(left, name) - taken)


def is_nothing(usage: Usage) -> bool:
    """Whether a usage has no amount."""
    return not any(getattr(usage, name) for name in _AMOUNTS)

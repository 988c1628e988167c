"""What one exchange may take, and how much of it there is room for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence

from llm_gateway.accounts.caps import NOTHING, Amounts, Cap, State
from llm_gateway.prices import Price


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """What one exchange may take."""

    input_tokens_max: int
    """Tokens of the prompt at most."""
    output_tokens_max: int
    """Tokens of the answer that are wanted."""
    output_tokens_min: int
    """Tokens of the answer that will do; the same as the maximum where the caller named it."""
    price: Price
    """What they cost."""
    tier: str = ""
    """What is asked, as the caller named it."""
    fallback: Amounts = NOTHING
    """What it would take at worst of the dearest deployment that may answer instead."""
    count: Callable[[], Awaitable[int | None]] | None = None
    """Counts the prompt's tokens more closely, which takes long; None where that is unknown. Asked
    only where the bound does not fit."""

    @functools.cached_property
    def worst(self) -> Amounts:
        """What it takes at worst with all that is wanted."""
        return self.amounts(self.output_tokens_max)

    def amounts(self, output_tokens: int) -> Amounts:
        """Return what it takes at worst with an answer of so many tokens."""
        cost = self.price.cost_usd_nanos_bound(self.input_tokens_max, output_tokens)
        return Amounts(1, self.input_tokens_max + output_tokens, cost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """A cap that a demand cannot get past, even if all that is held came back."""

    cap: Cap
    """Which."""
    limit: str
    """Name of its limit."""
    value: int
    """That limit."""
    taken: int
    """What is gone of it."""
    needed: int
    """What the demand takes of it at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """What there is for a demand at a moment."""

    output_tokens: int
    """Tokens of an answer that fit; fewer than will do, or less than 0, where nothing fits."""
    has_others: bool
    """What others hold is in the way of the whole demand."""


def room_for(demand: Demand, caps: Sequence[Cap], states: Sequence[State]) -> Room | Refused:
    """Return what there is, given how each cap's account stands."""
    output_tokens, has_others = demand.output_tokens_max, False
    for cap, state in zip(caps, states, strict=True):
        refused = _refused(demand, cap, state)
        if refused is not None:
            return refused
        fitting = _output_tokens_that_fit(demand, cap, state)
        if fitting < demand.output_tokens_max:
            has_others = has_others or state.held.calls > 0
        output_tokens = min(output_tokens, fitting)
    return Room(output_tokens=output_tokens, has_others=has_others)


def _refused(demand: Demand, cap: Cap, state: State) -> Refused | None:
    if cap.concurrency_max == 0:
        return Refused(cap=cap, limit="concurrency_max", value=0, taken=0, needed=1)
    least = demand.amounts(demand.output_tokens_min)
    for name, value, taken, needed in zip(
        ("calls_max", "tokens_max", "cost_usd_nanos_max"),
        cap.limits,
        state.taken,
        least,
        strict=True,
    ):
        if 0 <= value < taken + needed:
            return Refused(cap=cap, limit=name, value=value, taken=taken, needed=needed)
    return None


def _output_tokens_that_fit(demand: Demand, cap: Cap, state: State) -> int:
    used = state.taken.plus(state.held)
    is_full = cap.concurrency_max is not None and state.held.calls >= cap.concurrency_max
    if is_full or (cap.calls_max is not None and used.calls >= cap.calls_max):
        return -1
    fitting = demand.output_tokens_max
    if cap.tokens_max is not None:
        fitting = min(fitting, cap.tokens_max - used.tokens - demand.input_tokens_max)
    if cap.cost_usd_nanos_max is not None:
        left = cap.cost_usd_nanos_max - used.cost_usd_nanos
        payable = demand.price.output_tokens_within(demand.input_tokens_max, left)
        fitting = fitting if payable is None else min(fitting, payable)
    return fitting

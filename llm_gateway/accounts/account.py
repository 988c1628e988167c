"""One account: what was taken in each part of its window, and what is held of it."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import orjson

from llm_gateway.accounts.caps import (
    NOTHING,
    Amounts,
    Cap,
    Shortage,
    State,
    oldest_slot,
    seconds_until_gone,
    slot_of,
)

_LIMITS = ("calls_max", "tokens_max", "cost_usd_nanos_max")
_SOON_S = 1.0


class Account:
    """The numbers of one account. Whoever has it has it alone."""

    def __init__(self, window_us: int, taken: Amounts, now_us: int) -> None:
        """Open one that begins with what was `taken`."""
        self.window_us = window_us
        """Stretch of time that what was taken counts for, in microseconds; 0 for ever."""
        self.held = NOTHING
        """Reserved by exchanges under way."""
        self.forget_us = 0
        """See Cap."""
        self._taken: dict[int, Amounts] = {}
        self.take(taken, now_us)

    def shortage(self, cap: Cap, wanted: Amounts, now_us: int) -> Shortage | None:
        """Return which limit of a cap leaves no room for `wanted`; None where all do."""
        state = self.state(now_us)
        if cap.concurrency_max is not None and state.held.calls >= cap.concurrency_max:
            return Shortage(
                cap=cap,
                limit="concurrency_max",
                value=cap.concurrency_max,
                state=state,
                retry_after_s=_SOON_S,
            )
        for place, (name, limit) in enumerate(zip(_LIMITS, cap.limits, strict=True)):
            over = state.taken[place] + state.held[place] + wanted[place] - limit
            if limit >= 0 and over > 0:
                wait_s = self._until_gone_s(place, over - state.held[place], now_us)
                fits = wanted[place] <= limit
                return Shortage(
                    cap=cap,
                    limit=name,
                    value=limit,
                    state=state,
                    retry_after_s=wait_s if fits else None,
                )
        return None

    def raise_to(self, floor: Amounts, now_us: int) -> None:
        """Count what others know to have been taken."""
        taken = self.state(now_us).taken
        self.take(floor.at_least(taken).minus(taken), now_us)

    def hold(self, amounts: Amounts) -> None:
        """Reserve."""
        self.held = self.held.plus(amounts)

    def free(self, amounts: Amounts) -> None:
        """End a reservation."""
        self.held = self.held.minus(amounts)

    def take(self, amounts: Amounts, at_us: int) -> None:
        """Count as taken, at a time; may be negative, to correct what was counted then."""
        if amounts != NOTHING:
            self.take_in(slot_of(self.window_us, at_us), amounts)

    def take_in(self, slot: int, amounts: Amounts) -> None:
        """Count as taken, in a part of the window."""
        self._taken[slot] = self._taken.get(slot, NOTHING).plus(amounts)

    def state(self, now_us: int) -> State:
        """Return what is taken and held; forgets what has left the window."""
        oldest = oldest_slot(self.window_us, now_us)
        for slot in [slot for slot in self._taken if slot < oldest]:
            del self._taken[slot]
        taken = NOTHING
        for amounts in self._taken.values():
            taken = taken.plus(amounts)
        return State(taken=taken, held=self.held)

    def is_forgettable(self, now_us: int) -> bool:
        """Whether nobody can miss it."""
        return self.held == NOTHING and 0 < self.forget_us <= now_us

    def dump(self) -> bytes:
        """Return it as bytes, for `load`."""
        values: dict[str, Any] = {
            "window_us": self.window_us,
            "held": [*self.held],
            "taken": [[slot, *amounts] for slot, amounts in self._taken.items()],
        }
        return orjson.dumps(values)

    @classmethod
    def load(cls, data: bytes, forget_us: int) -> Self:
        """Return what `dump` made bytes of."""
        values = orjson.loads(data)
        account = cls(values["window_us"], NOTHING, 0)
        account.held = Amounts(*values["held"])
        account.forget_us = forget_us
        account._taken = {slot: Amounts(*amounts) for slot, *amounts in values["taken"]}
        return account

    def _until_gone_s(self, place: int, over: int, now_us: int) -> float | None:
        """Return when so much of what was taken no longer counts; None for never."""
        if over <= 0:
            return _SOON_S  # what is held is in the way, and ends by itself
        if not self.window_us:
            return None
        for slot in sorted(self._taken):
            over -= self._taken[slot][place]
            if over <= 0:
                return seconds_until_gone(self.window_us, slot, now_us)
        return None


@dataclasses.dataclass
class Hold:
    """A reservation as a store has it."""

    owner: str
    """Who will settle it."""
    amounts: Amounts
    """Held on each account."""
    accounts: tuple[str, ...]
    """Where."""
    expired_us: int = 0
    """When its worst case was counted as taken, its owner being dead; 0 while it is held."""

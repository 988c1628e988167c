"""What a call may take and what limits it: values, without any store.

An account counts; a cap says how much of an account a call may find taken. Two calls may put
different caps on one account, as the work of a run and its last answer do.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

SLOTS = 60
"""Parts of a window. What was taken counts until its whole part has left the window, so a limit
holds in every stretch of time as long as the window, and is lifted a sixtieth late."""
_MICROS = 1_000_000


class Amounts(NamedTuple):
    """What is counted, all at once."""

    calls: int = 0
    """Exchanges with providers."""
    tokens: int = 0
    """Input and output."""
    cost_usd_nanos: int = 0
    """Billionths of a US dollar."""

    def plus(self, other: Amounts) -> Amounts:
        """Add each to each."""
        return Amounts(self[0] + other[0], self[1] + other[1], self[2] + other[2])

    def minus(self, other: Amounts) -> Amounts:
        """Take each from each; may be negative."""
        return Amounts(self[0] - other[0], self[1] - other[1], self[2] - other[2])

    def at_least(self, other: Amounts) -> Amounts:
        """Return the larger of each."""
        return Amounts(max(self[0], other[0]), max(self[1], other[1]), max(self[2], other[2]))


NOTHING = Amounts()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """A limit on one account."""

    account: str
    """What counts: the tenant's name, a slash, and what is unique in the tenant."""
    window_us: int = 0
    """Stretch of time that the limits hold for, in microseconds; 0 for ever."""
    calls_max: int | None = None
    """Exchanges in the window; None for no limit, as below."""
    tokens_max: int | None = None
    """Tokens in the window."""
    cost_usd_nanos_max: int | None = None
    """Money in the window, in billionths of a US dollar."""
    concurrency_max: int | None = None
    """Exchanges at a time, whatever the window."""
    floor: Amounts = NOTHING
    """What is known to have been taken at least."""
    opening: Amounts = NOTHING
    """What an account that is not there yet begins with."""
    forget_us: int = 0
    """Microseconds of Unix time after which an account that nothing is held of may be forgotten;
    0 for never."""
    quota: str = ""
    """Name of the quota that it enforces; empty for a limit of a run."""

    @property
    def limits(self) -> Amounts:
        """The three limits; -1 for none."""
        given = (self.calls_max, self.tokens_max, self.cost_usd_nanos_max)
        return Amounts(*(-1 if limit is None else limit for limit in given))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holding:
    """What one exchange may take at worst, held on every account until it is settled."""

    hold_id: str
    """Never used for another; the same one again changes nothing."""
    owner: str
    """The process that will settle it. When that is dead the worst case counts as taken."""
    tenant: str
    """Whose accounts they are; all of one tenant."""
    amounts: Amounts
    """Held on each account."""
    caps: tuple[Cap, ...]
    """All must have room, or nothing is held; each account once."""
    now_us: int
    """When."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """How an account stands."""

    taken: Amounts = NOTHING
    """Settled, in the window."""
    held: Amounts = NOTHING
    """Reserved by exchanges under way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortage:
    """Why nothing could be held."""

    cap: Cap
    """The first that has no room."""
    limit: str
    """Name of its limit."""
    value: int
    """That limit."""
    state: State
    """How the account stands."""
    retry_after_s: float | None
    """When so much has left the window that it fits, if nothing more comes; None for never."""


def slot_us(window_us: int) -> int:
    """Return the length of a window's parts; at least a microsecond."""
    return max(1, -(-window_us // SLOTS))


def slot_of(window_us: int, now_us: int) -> int:
    """Return the part that a moment is in; 0 for ever."""
    return now_us // slot_us(window_us) if window_us else 0


def oldest_slot(window_us: int, now_us: int) -> int:
    """Return the first part that still reaches into the window."""
    return (now_us - window_us) // slot_us(window_us) if window_us else 0


def seconds_until_gone(window_us: int, slot: int, now_us: int) -> float:
    """Return in how many seconds a part has left the window whole."""
    return max(0, (slot + 1) * slot_us(window_us) + window_us - now_us) / _MICROS

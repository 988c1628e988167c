"""What can be done to the ledger, each as one value, so that many callers' share one transaction.

An operation names its key and, where it changes a call, the owner whom the call must still have:
a process that was thought dead and goes on changes nothing that another one has taken over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from llm_gateway.answers import Booked
from llm_gateway.ledger.entries import (
    CallEntry,
    CallKey,
    CallSums,
    ExchangeRecord,
    Hold,
    StoredAnswer,
)

Result = TypeVar("Result")


class Operation(Generic[Result]):
    """One thing to do, whose outcome is a `Result`."""


@dataclasses.dataclass(frozen=True)
class LookUp(Operation[CallEntry | None]):
    """Return how a call stands; None where its key is free and nothing was spent under it."""

    key: CallKey
    """The call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenCall(Operation[bool]):
    """Open a call with its first hold; False where its key is not free."""

    key: CallKey
    """The call."""
    digest: bytes
    """Of what is asked."""
    tier: str
    """What is asked for."""
    owner: str
    """Who works on it."""
    hold: Hold
    """Its first exchange."""
    now_us: int
    """When."""
    is_again: bool = False
    """A key that something was spent under counts as free."""


@dataclasses.dataclass(frozen=True)
class HoldAgain(Operation[bool]):
    """Hold for another exchange of an open call; False where the call is no longer the owner's."""

    key: CallKey
    """The call."""
    owner: str
    """Whose it must be."""
    hold: Hold
    """The exchange."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepAnswer(Operation[None]):
    """Book an exchange and keep its answer, in one."""

    owner: str
    """Whose call it must be; else the exchange alone is booked."""
    exchange: ExchangeRecord
    """What it took. Replaces what was booked for it by others, who could but guess."""
    answer: StoredAnswer | None
    """To be kept; None drops the call, which nobody can repeat."""


@dataclasses.dataclass(frozen=True)
class Fail(Operation[None]):
    """Book an exchange that gave no answer and end its hold; the call stays open."""

    owner: str
    """Whose call it must be; else the exchange alone is booked."""
    exchange: ExchangeRecord
    """What it took; where that is nothing, and nothing was presumed, nothing is booked."""


@dataclasses.dataclass(frozen=True)
class Presume(Operation[None]):
    """Book an exchange that goes on, at its worst case, where nothing is booked for it: its call
    can hold for one exchange, and two are under way."""

    exchange: ExchangeRecord
    """What it may take; replaced by what it really took."""


@dataclasses.dataclass(frozen=True)
class Release(Operation[None]):
    """Free the key of an open call that has no answer."""

    key: CallKey
    """The call."""
    owner: str
    """Whose it must be."""
    is_spent: bool = False
    """Something was spent under the key, which is to be remembered."""


@dataclasses.dataclass(frozen=True)
class Bury(Operation[bool]):
    """End an open call whose owner is dead: book its hold as an estimate and free its key, as one
    that something was spent under.

    False where the call is not open or no longer that owner's. The hold is the worst case, and no
    guess at what is likely: with less, a run whose gateway is killed often enough could spend any
    multiple of its limit.
    """

    key: CallKey
    """The call."""
    owner: str
    """Whose it must be."""
    now_us: int
    """When."""


@dataclasses.dataclass(frozen=True)
class KeepLease(Operation[None]):
    """Say that a process lives."""

    owner: str
    """The process."""
    until_us: int
    """How long to believe it; 0 forgets the process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSum:
    """What a run has taken so far."""

    tokens: int
    """Input and output."""
    cost_usd_nanos: int
    """Billionths of a US dollar."""


@dataclasses.dataclass(frozen=True)
class SumRun(Operation[RunSum]):
    """Return what a run has taken, with what calls of other owners hold."""

    tenant: str
    """Whose run it is."""
    run: str
    """`runs/{run}`."""
    owner: str
    """Whose holds are left out, since it counts them itself."""


@dataclasses.dataclass(frozen=True)
class SumCall(Operation[Booked]):
    """Return what was booked under a call's key."""

    key: CallKey
    """The call."""


@dataclasses.dataclass(frozen=True)
class SumCalls(Operation[CallSums]):
    """Return what was booked for the calls of a run whose request ids begin alike."""

    tenant: str
    """Whose run it is."""
    run: str
    """`runs/{run}`."""
    prefix: str
    """What the request ids begin with."""


@dataclasses.dataclass(frozen=True)
class FindDead(Operation[list[Bury]]):
    """Return burials for open calls whose owners are dead."""

    owner: str
    """Who asks, and so lives, however late its lease is."""
    now_us: int
    """When."""
    calls_max: int
    """At most so many."""


@dataclasses.dataclass(frozen=True)
class Forget(Operation[int]):
    """Delete what is older than a time, open calls excepted; return how many rows went."""

    before_us: int
    """Microseconds of Unix time."""
    rows_max: int
    """At most so many of each kind."""


class CallStore(Protocol):
    """Where the ledger is. `sql_store.py` is the real one."""

    async def apply(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Do all in one transaction and return their outcomes, in order.

        Calls are opened first and looked up last, whatever the order given. Raises
        StoreUnavailableError, or whatever the store has against one of them; then none is done.
        """
        ...


class StoreUnavailableError(Exception):
    """The store cannot be reached, or is too busy; the same may work later."""

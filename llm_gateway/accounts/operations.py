"""What can be done to accounts in the ledger's own transactions.

All of them are of one kind, since within a transaction they are done in the order given: a hold is
reserved before it is settled, and what is settled makes room for what comes behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from llm_gateway.accounts.caps import Amounts, Cap, Holding
from llm_gateway.ledger.operations import Operation


@dataclasses.dataclass(frozen=True)
class Reserve:
    """See AccountStore; gives a Shortage or None."""

    holding: Holding
    """What is to be held."""


@dataclasses.dataclass(frozen=True)
class Settle:
    """See AccountStore; gives None."""

    hold_id: str
    """What ends."""
    taken: Amounts
    """What it took."""
    now_us: int
    """When."""
    accounts: tuple[str, ...] = ()
    """Where it was held, as far as its owner knows: else that is read first."""


@dataclasses.dataclass(frozen=True)
class Look:
    """See AccountStore; gives a State for each cap."""

    caps: tuple[Cap, ...]
    """The accounts."""
    now_us: int
    """When."""


@dataclasses.dataclass(frozen=True)
class Expire:
    """See AccountStore; gives how many holds were counted at worst."""

    now_us: int
    """When."""
    holds_max: int
    """At most so many."""
    forget_before_us: int
    """Holds that expired before are forgotten: their owner will not settle them any more."""


@dataclasses.dataclass(frozen=True)
class AccountWork(Operation[Any]):
    """One thing to do to accounts, whose outcome is of its own kind."""

    step: Reserve | Settle | Look | Expire
    """What."""

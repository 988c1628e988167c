"""What every store of accounts promises. One contract test holds all of them to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llm_gateway.accounts.caps import Amounts, Cap, Holding, Shortage, State


class AccountStore(Protocol):
    """Where accounts are. Whatever is raised is LedgerUnavailableError: then no call is made."""

    async def reserve(self, holding: Holding) -> Shortage | None:
        """Hold on all accounts in one step, or on none and return why.

        Where it raises or is cancelled nobody knows whether it holds: settle it all the same.
        """
        ...

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        """End a hold and count what was really taken; it is begun at once, whoever waits.

        Without such a hold nothing is done. Of one whose owner was thought dead the worst case is
        taken back. It comes after a `reserve` of the same hold that was begun before.
        """
        ...

    async def states(self, caps: Sequence[Cap], now_us: int) -> list[State]:
        """Return how the caps' accounts stand."""
        ...

    async def keep_lease(self, owner: str, until_us: int) -> None:
        """Say that a process lives; 0 forgets it."""
        ...

    async def expire(self, now_us: int) -> int:
        """Count the holds of dead processes as taken at worst, which frees their places, and
        forget what nobody can miss; return how many holds it were."""
        ...

    async def close(self) -> None:
        """Let go of what it is connected to."""
        ...

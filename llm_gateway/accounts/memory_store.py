"""Accounts in this process's memory: nothing outlives it, and no other process sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_gateway.accounts.caps import Amounts, Cap, Holding, Shortage, State
from llm_gateway.accounts.register import Register


class MemoryAccountStore:
    """An AccountStore for one gateway. No step of it can be interrupted by another."""

    def __init__(self) -> None:
        self._register = Register()
        self._leases: dict[str, int] = {}

    async def reserve(self, holding: Holding) -> Shortage | None:
        """See AccountStore."""
        return self._register.reserve(holding)

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        """See AccountStore."""
        self._register.settle(hold_id, taken, now_us)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def states(self, caps: Sequence[Cap], now_us: int) -> list[State]:
        """See AccountStore."""
        return [self.state(cap, now_us) for cap in caps]

    def state(self, cap: Cap, now_us: int) -> State:
        """Return how a cap's account stands."""
        return self._register.state(cap, now_us)

    async def keep_lease(self, owner: str, until_us: int) -> None:
        """See AccountStore."""
        if until_us:
            self._leases[owner] = until_us
        else:
            self._leases.pop(owner, None)

    async def expire(self, now_us: int) -> int:
        """See AccountStore."""
        register = self._register
        dead = [
            hold_id
            for hold_id, hold in register.holds.items()
            if self._leases.get(hold.owner, 0) <= now_us
        ]
        count = sum(register.expire(hold_id, now_us) for hold_id in dead)
        register.forget(now_us)
        return count

    async def close(self) -> None:
        """See AccountStore."""

"""Accounts in SQL, in the ledger's own transactions: what a call took and the answer that it was
taken for become durable together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_gateway.accounts.caps import Amounts, Cap, Holding, Shortage, State
from llm_gateway.accounts.operations import AccountWork, Expire, Look, Reserve, Settle
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.operations import KeepLease

_HOLDS_MAX = 200
"""Expired in one transaction."""
_REMEMBERED_US = 86_400_000_000
"""How long an expired hold can still be settled, in microseconds."""


class SqlAccountStore:
    """An AccountStore for gateways that share a database."""

    def __init__(self, commits: GroupCommit) -> None:
        self._commits = commits
        self._accounts: dict[str, tuple[str, ...]] = {}

    async def reserve(self, holding: Holding) -> Shortage | None:
        """See AccountStore."""
        shortage: Shortage | None = await self._commits.post(AccountWork(Reserve(holding)))
        if shortage is None:
            self._accounts[holding.hold_id] = tuple(cap.account for cap in holding.caps)
        return shortage

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        """See AccountStore."""
        accounts = self._accounts.pop(hold_id, ())
        return self._commits.post(AccountWork(Settle(hold_id, taken, now_us, accounts)))

    async def states(self, caps: Sequence[Cap], now_us: int) -> list[State]:
        """See AccountStore."""
        states: list[State] = await self._commits.post(AccountWork(Look(tuple(caps), now_us)))
        return states

    async def keep_lease(self, owner: str, until_us: int) -> None:
        """See AccountStore."""
        await self._commits.post(KeepLease(owner, until_us))

    async def expire(self, now_us: int) -> int:
        """See AccountStore."""
        total = 0
        while True:
            step = Expire(now_us, _HOLDS_MAX, now_us - _REMEMBERED_US)
            count: int = await self._commits.post(AccountWork(step))
            total += count
            if count < _HOLDS_MAX:
                return total

    async def close(self) -> None:
        """See AccountStore; the ledger closes what it shares."""

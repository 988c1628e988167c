"""What is done to accounts and holds, over the few that one step touches.

Both the store in memory and the one in SQL are this: they differ in where a register comes from and
where it goes.
"""

from __future__ import annotations

import dataclasses

from llm_gateway.accounts.account import Account, Hold
from llm_gateway.accounts.caps import Amounts, Cap, Holding, Shortage, State


@dataclasses.dataclass
class Register:
    """Accounts by name and holds by id."""

    accounts: dict[str, Account] = dataclasses.field(default_factory=dict)
    """Those that are there."""
    holds: dict[str, Hold] = dataclasses.field(default_factory=dict)
    """Those that are not settled."""

    def reserve(self, holding: Holding) -> Shortage | None:
        """See AccountStore."""
        if holding.hold_id in self.holds:
            return None
        now_us = holding.now_us
        for cap in holding.caps:
            shortage = self._account(cap, now_us).shortage(cap, holding.amounts, now_us)
            if shortage is not None:
                return shortage
        for cap in holding.caps:
            self.accounts[cap.account].hold(holding.amounts)
        names = tuple(cap.account for cap in holding.caps)
        self.holds[holding.hold_id] = Hold(holding.owner, holding.amounts, names)
        return None

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> None:
        """See AccountStore."""
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return
        for account in self._of(hold):
            if hold.expired_us:
                account.take(taken.minus(hold.amounts), hold.expired_us)
            else:
                account.free(hold.amounts)
                account.take(taken, now_us)

    def expire(self, hold_id: str, now_us: int) -> bool:
        """Count one hold as taken at worst; False where that was done before."""
        hold = self.holds.get(hold_id)
        if hold is None or hold.expired_us:
            return False
        hold.expired_us = now_us
        for account in self._of(hold):
            account.free(hold.amounts)
            account.take(hold.amounts, now_us)
        return True

    def forget(self, now_us: int) -> None:
        """Drop the accounts that nobody can miss."""
        for name in [n for n, each in self.accounts.items() if each.is_forgettable(now_us)]:
            del self.accounts[name]

    def state(self, cap: Cap, now_us: int) -> State:
        """Return how a cap's account stands, without making it."""
        account = self.accounts.get(cap.account)
        stands = State() if account is None else account.state(now_us)
        floor = cap.floor if account is not None else cap.floor.at_least(cap.opening)
        return dataclasses.replace(stands, taken=stands.taken.at_least(floor))

    def _account(self, cap: Cap, now_us: int) -> Account:
        account = self.accounts.get(cap.account)
        if account is None:
            account = Account(cap.window_us, cap.opening, now_us)
            self.accounts[cap.account] = account
        account.raise_to(cap.floor, now_us)
        account.forget_us = max(account.forget_us, cap.forget_us)
        return account

    def _of(self, hold: Hold) -> list[Account]:
        return [self.accounts[name] for name in hold.accounts if name in self.accounts]

"""What each run has spent and has reserved, so that no set of concurrent calls can cross its
limits: reserve the worst case, call, settle what it really took.

In this process's memory, on top of what the ledger has of the run when the process first sees it
and of the run token's own figures. Several gateways do not share it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from common.run_token import RunToken
from llm_gateway.answers import Spend
from llm_gateway.errors import RunLimitExceededError
from llm_gateway.prices import Price

_SWEEP_INTERVAL_S = 60.0


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpend:
    """What a run has settled and what it has reserved."""

    tokens: int
    """Settled."""
    cost_usd_nanos: int
    """Settled, in billionths of a US dollar."""
    tokens_held: int
    """Reserved by exchanges under way."""
    cost_usd_nanos_held: int
    """Reserved by exchanges under way, in billionths of a US dollar."""


class Reservation:
    """A part of a run's limits held for one exchange, until it is settled."""

    def __init__(self, account: _Account, output_tokens_max: int, tokens: int, cost: int) -> None:
        self.output_tokens_max = output_tokens_max
        """What the answer may have; less than was wanted where only that fits the limits."""
        self.tokens = tokens
        """Held."""
        self.cost_usd_nanos = cost
        """Held, in billionths of a US dollar."""
        self._account: _Account | None = account

    def settle(self, spend: Spend) -> None:
        """Book what the exchange took and free the rest; once, later calls do nothing.

        It has no point at which it could be cancelled.
        """
        account, self._account = self._account, None
        if account is not None:
            account.settle(self, spend)


class RunTotal(Protocol):
    """What a run has taken, by some books."""

    @property
    def tokens(self) -> int:
        """Input and output."""
        ...

    @property
    def cost_usd_nanos(self) -> int:
        """Billionths of a US dollar."""
        ...


class RunBooks(Protocol):
    """What outlives this process."""

    async def run_sum(self, tenant: str, run: str) -> RunTotal:
        """Return what a run has settled, and what other processes hold for it."""
        ...


class Meter:
    """The accounts of all runs seen lately."""

    def __init__(
        self, now: Callable[[], float] = time.time, *, books: RunBooks | None = None
    ) -> None:
        """Without `books` every run begins with what its token says."""
        self._books = books
        self._now = now
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._next_sweep = now() + _SWEEP_INTERVAL_S

    async def reserve(self, token: RunToken, demand: Demand) -> Reservation:
        """Hold the worst case of an exchange; waits, in order, while others of the run hold more.

        Raises RunLimitExceededError where it does not fit with nothing else under way, and what
        the books raise where they cannot be read.
        """
        account = self._account(token)
        is_limited = token.tokens_max is not None or token.cost_usd_nanos_max is not None
        if self._books is not None and is_limited and not account.is_read:
            async with account.reading:
                if not account.is_read:
                    account.take_over(await self._books.run_sum(token.tenant, token.run))
        return await account.reserve(token, demand)

    def read_again(self, tenant: str, run: str) -> None:
        """Say that the books have more of a run than this process knows of."""
        account = self._accounts.get((tenant, run))
        if account is not None:
            account.is_read = False

    def spend_of(self, token: RunToken) -> RunSpend:
        """Return the state of the token's run."""
        return self._account(token).spend()

    def _account(self, token: RunToken) -> _Account:
        now = self._now()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_INTERVAL_S
            kept = {key: account for key, account in self._accounts.items() if account.is_live(now)}
            self._accounts = kept
        account = self._accounts.setdefault((token.tenant, token.run), _Account())
        account.raise_floor(token)
        return account


@dataclasses.dataclass
class _Waiting:
    """A call that waits for others of its run to settle."""

    token: RunToken
    """Its limits."""
    demand: Demand
    """What it wants."""
    granted: asyncio.Future[Reservation]
    """Resolved with its reservation, or with why there is none."""


class _Account:
    """One run: everything here happens between two awaits, so nothing can interleave."""

    def __init__(self) -> None:
        self._tokens_spent = 0
        self._cost_spent = 0
        self._tokens_held = 0
        self._cost_held = 0
        self._held_count = 0
        self._waiting: deque[_Waiting] = deque()
        self._expires_at = 0.0
        self.is_read = False
        """What the books have is known."""
        self.reading = asyncio.Lock()
        """Held by the one call that reads them."""

    def take_over(self, total: RunTotal) -> None:
        """Begin from what the books have, unless more is known already."""
        self._tokens_spent = max(self._tokens_spent, total.tokens)
        self._cost_spent = max(self._cost_spent, total.cost_usd_nanos)
        self.is_read = True

    def raise_floor(self, token: RunToken) -> None:
        """Take over what the token's maker knows of the run."""
        self._tokens_spent = max(self._tokens_spent, token.tokens_spent)
        self._cost_spent = max(self._cost_spent, token.cost_usd_nanos_spent)
        self._expires_at = max(self._expires_at, token.expires_at)

    def is_live(self, now: float) -> bool:
        """Whether it is in use, or a token that was seen is still good."""
        return bool(self._held_count or self._waiting) or now < self._expires_at

    def spend(self) -> RunSpend:
        """Return the present state."""
        return RunSpend(
            tokens=self._tokens_spent,
            cost_usd_nanos=self._cost_spent,
            tokens_held=self._tokens_held,
            cost_usd_nanos_held=self._cost_held,
        )

    async def reserve(self, token: RunToken, demand: Demand) -> Reservation:
        """See Meter.reserve."""
        waiting = _Waiting(token, demand, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._serve_waiting()
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    def settle(self, reservation: Reservation, spend: Spend) -> None:
        """See Reservation.settle."""
        self._tokens_held -= reservation.tokens
        self._cost_held -= reservation.cost_usd_nanos
        self._held_count -= 1
        self._tokens_spent += spend.tokens.total
        self._cost_spent += spend.cost_usd_nanos
        self._serve_waiting()

    def _withdraw(self, waiting: _Waiting) -> None:
        granted = waiting.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().settle(Spend())
        elif waiting in self._waiting:
            self._waiting.remove(waiting)
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Serve from the head while it fits; whoever came first is never overtaken."""
        while self._waiting:
            waiting = self._waiting[0]
            reservation = self._hold(waiting.token, waiting.demand)
            if reservation is None and self._held_count:
                return
            self._waiting.popleft()
            if waiting.granted.done():  # cancelled, and about to withdraw
                if reservation is not None:
                    reservation.settle(Spend())
            elif reservation is not None:
                waiting.granted.set_result(reservation)
            else:
                waiting.granted.set_exception(self._refusal(waiting.token, waiting.demand))

    def _hold(self, token: RunToken, demand: Demand) -> Reservation | None:
        output_tokens = self._output_tokens_that_fit(token, demand)
        # A shorter answer is better than none, and worse than waiting for the others to settle.
        wanted = demand.output_tokens_max if self._held_count else demand.output_tokens_min
        if output_tokens < wanted:
            return None
        tokens = demand.input_tokens_max + output_tokens
        cost = demand.price.cost_usd_nanos_bound(demand.input_tokens_max, output_tokens)
        self._tokens_held += tokens
        self._cost_held += cost
        self._held_count += 1
        return Reservation(self, output_tokens, tokens, cost)

    def _output_tokens_that_fit(self, token: RunToken, demand: Demand) -> int:
        fitting = demand.output_tokens_max
        if token.tokens_max is not None:
            left = token.tokens_max - self._tokens_spent - self._tokens_held
            fitting = min(fitting, left - demand.input_tokens_max)
        if token.cost_usd_nanos_max is not None:
            left = token.cost_usd_nanos_max - self._cost_spent - self._cost_held
            payable = demand.price.output_tokens_within(demand.input_tokens_max, left)
            fitting = fitting if payable is None else min(fitting, payable)
        return fitting

    def _refusal(self, token: RunToken, demand: Demand) -> RunLimitExceededError:
        needed = demand.input_tokens_max + demand.output_tokens_min
        if token.tokens_max is not None and self._tokens_spent + needed > token.tokens_max:
            return RunLimitExceededError("tokens_max", token.tokens_max, self._tokens_spent, needed)
        cost = demand.price.cost_usd_nanos_bound(demand.input_tokens_max, demand.output_tokens_min)
        cost_max = token.cost_usd_nanos_max or 0
        return RunLimitExceededError("cost_usd_nanos_max", cost_max, self._cost_spent, cost)

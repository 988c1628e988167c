"""No set of concurrent calls crosses a limit: reserve the worst case, call, settle what it took.

The numbers are in a store of accounts, which may be shared with other gateways. Here is what is
between a call and that store: which limits it has, the order in which the calls of a run are
served, and that whatever is reserved is settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from common.background import end_tasks
from common.errors import ServiceError
from common.run_token import RunToken
from llm_gateway.accounts.caps import NOTHING, Amounts, Cap, Holding, Shortage, State
from llm_gateway.accounts.memory_store import MemoryAccountStore
from llm_gateway.accounts.run_caps import RunBooks, RunCaps
from llm_gateway.accounts.store import AccountStore
from llm_gateway.bells import Bells, Key
from llm_gateway.demands import Demand, Refused, room_for
from llm_gateway.errors import LedgerUnavailableError, QuotaExceededError, RunLimitExceededError
from llm_gateway.reservation import Reservation

_POLL_S = 0.05
_POLL_S_MAX = 0.5
"""Between two looks at what other processes hold."""
_CLOSE_WAIT_S = 5.0
_MICROS = 1_000_000
_log = logging.getLogger(__name__)


class QuotaSource(Protocol):
    """What operators have set."""

    async def caps(self, token: RunToken, tier: str) -> Sequence[Cap]:
        """Return the caps of a call's tenant, key and run; raises LedgerUnavailableError."""
        ...


class Meter:
    """Reserves and settles for the calls of this process."""

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        *,
        store: AccountStore | None = None,
        books: RunBooks | None = None,
        quotas: QuotaSource | None = None,
        is_in_ledger: bool = False,
    ) -> None:
        """Without a `store` accounts are in memory; without `books` a run begins with what its
        token says; `now` is Unix time. `is_in_ledger` tells that the store writes in the ledger's
        own transactions."""
        self.is_in_ledger = is_in_ledger
        """As given."""
        self._store = store or MemoryAccountStore()
        self._quotas = quotas
        self._now = now
        self._run_caps = RunCaps(books, now)
        self._owner = secrets.token_hex(8)
        self._holds = 0
        self._lines: dict[Key, _Line] = {}
        self._bells = Bells()
        self._settling: set[asyncio.Future[None]] = set()
        self._unsettled: dict[str, tuple[Key, Amounts]] = {}

    async def reserve(self, token: RunToken, demand: Demand) -> Reservation:
        """Hold the worst case of an exchange; waits while what others hold is in the way, behind
        the calls of its run that came before.

        Raises RunLimitExceededError or QuotaExceededError where it would not fit with nothing else
        under way, and LedgerUnavailableError where the store or the books cannot be read.
        """
        asking = await self.asking(token, demand)
        key = asking.key
        if key not in self._lines:
            held = await self.reserve_at_once(asking)
            if held is not None:
                return held
        async with self._in_line(key):
            return await self._wait(asking)

    def has_line(self, token: RunToken) -> bool:
        """Whether calls of a run wait."""
        return (token.tenant, token.run) in self._lines

    async def asking(self, token: RunToken, demand: Demand) -> Asking:
        """Return what limits a demand; raises what `reserve` raises where nothing can be read."""
        caps = await self._run_caps.of(token)
        if self._quotas is not None:
            caps = (*caps, *await self._quotas.caps(token, demand.tier))
        return Asking((token.tenant, token.run), caps, demand)

    async def reserve_at_once(self, asking: Asking) -> Reservation | None:
        """Hold like `reserve`; None where that cannot be without waiting, or not at all.

        Where accounts are in the ledger's database it is posted to the ledger's next transaction
        before it is waited for.
        """
        held = await self._try(asking, asking.demand.output_tokens_max)
        return held if isinstance(held, Reservation) else None

    async def state(self, cap: Cap) -> State:
        """Return how a cap's account stands."""
        (state,) = await self._store.states([cap], self._now_us())
        return state

    async def share_spent(self, token: RunToken) -> float:
        """Return how much of its limits a run has taken, 1 for all of one; 0 where it has none."""
        cap, *_ = await self._run_caps.of(token)
        taken = (await self.state(cap)).taken
        return max(
            (
                done / limit if limit else 1.0
                for done, limit in zip(taken, cap.limits, strict=True)
                if limit >= 0
            ),
            default=0.0,
        )

    def read_again(self, tenant: str, run: str) -> None:
        """Say that the books have more of a run than the store, which is this process's own."""
        self._run_caps.read_again(tenant, run)

    @contextlib.asynccontextmanager
    async def living(self, lease_s: float) -> AsyncIterator[None]:
        """Be known to live while the block lasts, and end what the dead have left."""
        await self._keep_lease(lease_s)
        tending = asyncio.create_task(self._tend(lease_s))
        try:
            yield
        finally:
            await end_tasks(tending)
            if self._settling:
                await asyncio.wait(self._settling, timeout=_CLOSE_WAIT_S)
            with contextlib.suppress(LedgerUnavailableError):
                if not self._unsettled:
                    await self._store.keep_lease(self._owner, 0)
            await self._store.close()

    async def _try(self, asking: Asking, output_tokens: int) -> Reservation | Shortage:
        self._holds += 1
        hold_id = f"{self._owner}-{self._holds:012d}"
        amounts = asking.demand.amounts(output_tokens)
        holding = Holding(
            hold_id=hold_id,
            owner=self._owner,
            tenant=asking.key[0],
            amounts=amounts.at_least(asking.demand.fallback),
            caps=asking.caps,
            now_us=self._now_us(),
        )
        try:
            shortage = await self._store.reserve(holding)
        except BaseException:
            self._settle(asking.key, hold_id, NOTHING)  # nobody knows whether it holds
            raise
        if shortage is not None:
            return shortage
        return Reservation(
            output_tokens,
            amounts,
            lambda taken: self._settle(asking.key, hold_id, taken),
        )

    async def _wait(self, asking: Asking) -> Reservation:
        """Serve the call at the head of its run's line."""
        pause_s = _POLL_S
        while True:
            change = self._bells.next(asking.key)
            held = await self._try(asking, asking.demand.output_tokens_max)
            if isinstance(held, Reservation):
                return held
            if asking.demand.count is not None:
                asking = await _counted(asking)
                continue
            states = await self._store.states(asking.caps, self._now_us())
            room = room_for(asking.demand, asking.caps, states)
            if isinstance(room, Refused):
                raise _error(room, held)
            if not room.has_others:
                # A shorter answer is better than none, and worse than waiting for the others.
                held = await self._try(asking, room.output_tokens)
                if isinstance(held, Reservation):
                    return held
            await asyncio.wait({change}, timeout=pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)

    @contextlib.asynccontextmanager
    async def _in_line(self, key: Key) -> AsyncIterator[None]:
        """Wait behind the calls of the same run that wait; whoever came first is first."""
        line = self._lines.setdefault(key, _Line())
        line.length += 1
        try:
            async with line.head:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[key]

    def _settle(self, key: Key, hold_id: str, taken: Amounts) -> None:
        settled = self._store.settle(hold_id, taken, self._now_us())

        def note(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._unsettled[hold_id] = key, taken
            else:
                self._bells.ring(key)

        if settled.done():
            note(settled)
            return
        self._settling.add(settled)
        settled.add_done_callback(self._settling.discard)
        settled.add_done_callback(note)

    async def _tend(self, lease_s: float) -> None:
        while True:
            await asyncio.sleep(lease_s / 3)
            try:
                await self._keep_lease(lease_s)
                again, self._unsettled = self._unsettled, {}
                for hold_id, (key, taken) in again.items():
                    self._settle(key, hold_id, taken)
                if await self._store.expire(self._now_us()):
                    # Who waits for what they held looks by itself before long.
                    _log.warning("holds of a dead gateway are counted as taken")
            except ServiceError as error:
                _log.warning("accounts were not tended", extra={"kind": error.reason_name})
            self._run_caps.forget_old()

    async def _keep_lease(self, lease_s: float) -> None:
        await self._store.keep_lease(self._owner, self._now_us() + int(lease_s * _MICROS))

    def _now_us(self) -> int:
        return int(self._now() * _MICROS)


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a call wants, and what limits it."""

    key: Key
    """Whose it is."""
    caps: tuple[Cap, ...]
    """What limits it."""
    demand: Demand
    """What it wants."""


class _Line:
    """The calls of one run that wait."""

    def __init__(self) -> None:
        self.head = asyncio.Lock()
        """The call that is served next has it; a lock is given in the order of asking."""
        self.length = 0
        """Calls that wait or are served."""


async def _counted(asking: Asking) -> Asking:
    """Return it with the prompt's tokens counted, as far as that is known."""
    assert asking.demand.count is not None
    count = await asking.demand.count()
    bound = asking.demand.input_tokens_max
    bound = bound if count is None else min(bound, count)
    demand = dataclasses.replace(asking.demand, input_tokens_max=bound, count=None)
    return dataclasses.replace(asking, demand=demand)


def _error(refused: Refused, shortage: Shortage) -> ServiceError:
    cap = refused.cap
    figures = (refused.limit, refused.value, refused.taken, refused.needed)
    if not cap.quota:
        return RunLimitExceededError(*figures)
    wait_s = cap.window_us / _MICROS or None
    if shortage.cap.account == cap.account:
        wait_s = shortage.retry_after_s
    return QuotaExceededError(cap.quota, *figures, retry_after_s=wait_s)

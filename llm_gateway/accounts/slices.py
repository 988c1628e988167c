"""Slices: where calls under the same caps come one after the other, many calls' worth is held at
once, and the next ones take their parts of it without asking the store.

Only while less than half of every limit is in use, and never under a limit of concurrency: near a
limit each call is held for itself. What a slice took is counted when it ends, a moment after its
last call; of a process that dies the whole slice counts as taken.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

from llm_gateway.accounts.caps import NOTHING, Amounts, Cap, Holding, Shortage, State
from llm_gateway.accounts.store import AccountStore
from llm_gateway.errors import LedgerUnavailableError

_CALLS_MAX = 32
_CALLS_MIN = 4
"""In a slice; a smaller one is not worth its while."""
_LIMIT_PARTS = 16
"""A slice is at most one part in this many of each limit: so much is lost with a process that
dies."""
_CALLS_BEFORE = 8
"""Under the same caps, within the idle time of each other, before a slice is worth its while."""
_IDLE_S = 0.25
"""A slice that nobody uses for so long ends."""
_KEYS_MAX = 10_000
_MICROS = 1_000_000
_log = logging.getLogger(__name__)
Key = tuple[object, ...]


class SlicedAccountStore:
    """An AccountStore in front of another one, which it asks less often."""

    def __init__(self, store: AccountStore, *, now: Callable[[], float] = time.time) -> None:
        """`now` is Unix time."""
        self._store = store
        self._now = now
        self._slices: dict[Key, _Slice] = {}
        self._drawn: dict[str, tuple[_Slice, Amounts]] = {}
        self._lately: dict[Key, tuple[int, float]] = {}
        self._opening: dict[Key, asyncio.Task[None]] = {}
        self._unsettled: dict[str, Amounts] = {}

    async def reserve(self, holding: Holding) -> Shortage | None:
        """See AccountStore."""
        key = _key(holding)
        if key is None:
            return await self._store.reserve(holding)
        current = self._slices.get(key)
        if current is not None:
            if current.draw(holding.amounts):
                self._drawn[holding.hold_id] = (current, holding.amounts)
                return None
            self._end(current)
        shortage = await self._store.reserve(holding)
        is_enough = shortage is None and _calls_of_a_slice(holding) >= _CALLS_MIN
        if is_enough and key not in self._opening and self._is_worth_while(key):
            self._opening[key] = asyncio.create_task(self._open(key, holding))
        return shortage

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        """See AccountStore."""
        drawn = self._drawn.pop(hold_id, None)
        if drawn is None:
            return self._store.settle(hold_id, taken, now_us)
        part, amounts = drawn
        part.put_back(amounts, taken)
        if part.is_ended and not part.draws:
            self._settle(part)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def states(self, caps: Sequence[Cap], now_us: int) -> list[State]:
        """See AccountStore. Slices that nobody uses at the moment end first."""
        await self._end_unused()
        return await self._store.states(caps, now_us)

    async def keep_lease(self, owner: str, until_us: int) -> None:
        """See AccountStore."""
        if not until_us:
            await self._end_unused()
        again, self._unsettled = self._unsettled, {}
        for slice_id, taken in again.items():
            self._send(slice_id, taken)
        await self._store.keep_lease(owner, until_us)

    async def expire(self, now_us: int) -> int:
        """See AccountStore."""
        return await self._store.expire(now_us)

    async def close(self) -> None:
        """See AccountStore."""
        for each in list(self._slices.values()):
            self._end(each)
        await self._store.close()

    def _is_worth_while(self, key: Key) -> bool:
        """Count a call that was held for itself."""
        now = time.monotonic()
        calls, last = self._lately.get(key, (0, 0.0))
        calls = calls + 1 if now - last < _IDLE_S else 1
        if len(self._lately) >= _KEYS_MAX:
            self._lately.clear()
        self._lately[key] = calls, now
        return calls >= _CALLS_BEFORE and key not in self._slices

    async def _open(self, key: Key, like: Holding) -> None:
        count = _calls_of_a_slice(like)
        whole = Amounts(*(each * count for each in like.amounts))
        slice_id = f"{like.hold_id}-slice"
        wanted = dataclasses.replace(
            like, hold_id=slice_id, amounts=whole, caps=tuple(map(_halved, like.caps))
        )
        try:
            shortage = await self._store.reserve(wanted)
        except LedgerUnavailableError:
            self._send(slice_id, NOTHING)  # nobody knows whether it holds
        else:
            if shortage is not None:
                self._lately.pop(key, None)  # it is tried again after so many calls
            else:
                self._slices[key] = opened = _Slice(key, slice_id, whole)
                self._watch(opened)
        finally:
            del self._opening[key]

    def _watch(self, watched: _Slice) -> None:
        """End a slice once nobody has used it for a while."""
        if watched.is_ended:
            return
        if watched.is_used or watched.draws:
            watched.is_used = False
            asyncio.get_running_loop().call_later(_IDLE_S, self._watch, watched)
        else:
            self._end(watched)

    async def _end_unused(self) -> None:
        if self._opening:
            await asyncio.wait(self._opening.values())
        unused = [each for each in self._slices.values() if not each.draws]
        sent = [settled for each in unused if (settled := self._end(each)) is not None]
        if sent:
            await asyncio.wait(sent)

    def _end(self, ending: _Slice) -> asyncio.Future[None] | None:
        """Let nobody draw from a slice any more, and settle it where nobody has a part of it."""
        if ending.is_ended:
            return None
        ending.is_ended = True
        self._slices.pop(ending.key, None)
        return None if ending.draws else self._settle(ending)

    def _settle(self, ended: _Slice) -> asyncio.Future[None]:
        return self._send(ended.slice_id, ended.taken)

    def _send(self, slice_id: str, taken: Amounts) -> asyncio.Future[None]:
        settled = self._store.settle(slice_id, taken, int(self._now() * _MICROS))
        settled.add_done_callback(lambda done: self._note_sent(done, slice_id, taken))
        return settled

    def _note_sent(self, done: asyncio.Future[None], slice_id: str, taken: Amounts) -> None:
        if done.cancelled() or done.exception() is not None:
            _log.warning("a slice was not settled, and will be later")
            self._unsettled[slice_id] = taken


class _Slice:
    """What is held for calls to come."""

    def __init__(self, key: Key, slice_id: str, whole: Amounts) -> None:
        self.key = key
        """Of its caps."""
        self.slice_id = slice_id
        """Its hold in the store."""
        self.taken = NOTHING
        """What its calls took."""
        self.draws = 0
        """Calls under way that have a part of it."""
        self.is_used = True
        """Somebody drew lately."""
        self.is_ended = False
        """Nobody may draw any more."""
        self._left = whole

    def draw(self, amounts: Amounts) -> bool:
        """Take a part; False where too little is left."""
        left = self._left.minus(amounts)
        if min(left) < 0:
            return False
        self._left = left
        self.draws += 1
        self.is_used = True
        return True

    def put_back(self, amounts: Amounts, taken: Amounts) -> None:
        """End a part: what was not taken of it is there for others."""
        self.draws -= 1
        self.taken = self.taken.plus(taken)
        self._left = self._left.plus(amounts).minus(taken)


def _key(holding: Holding) -> Key | None:
    """Return what the calls of a slice have in common; None for calls that share none."""
    if any(cap.concurrency_max is not None for cap in holding.caps):
        return None
    return tuple((cap.account, cap.limits) for cap in holding.caps)


def _calls_of_a_slice(holding: Holding) -> int:
    counts = [
        limit // (_LIMIT_PARTS * amount)
        for cap in holding.caps
        for limit, amount in zip(cap.limits, holding.amounts, strict=True)
        if limit >= 0 and amount
    ]
    return min([_CALLS_MAX, *counts])


def _halved(cap: Cap) -> Cap:
    halves = [None if limit < 0 else limit // 2 for limit in cap.limits]
    return dataclasses.replace(
        cap, calls_max=halves[0], tokens_max=halves[1], cost_usd_nanos_max=halves[2]
    )

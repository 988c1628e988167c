"""One call's place in the ledger, from its first hold to its answer or to nothing.

The caller has it, and each exchange too: what a caller leaves under way is still recorded, and the
key is free only when the last of them has left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from llm_gateway.accounts.caps import NOTHING, Amounts
from llm_gateway.answers import Completion, Spend, Tokens
from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.entries import (
    CallKey,
    ExchangeRecord,
    Hold,
    RecordedAnswer,
)
from llm_gateway.ledger.operations import (
    Fail,
    HoldAgain,
    KeepAnswer,
    LookUp,
    OpenCall,
    Presume,
    Release,
)
from llm_gateway.reservation import Reservation

_log = logging.getLogger(__name__)


class ClaimLostError(Exception):
    """Another process has claimed the call: its answer is this call's answer."""


class Flight:
    """A call under way in this process, for its repeats to wait for."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        """Of what is asked."""
        self.recorded: RecordedAnswer | None = None
        """Set before its end, where there is an answer."""
        self.is_leaving = False
        """Nobody works on it any more; what is left is to write that down."""
        self.ended = asyncio.Event()
        """Nothing more will come of it."""


@dataclasses.dataclass(frozen=True)
class PostedHold:
    """A hold that is being written down."""

    hold: Hold
    """What it says."""
    is_ours: asyncio.Future[bool]
    """Done once it is written; False where the call is another process's."""


class Claim:
    """A call that this process makes, and nobody else at the same time."""

    def __init__(
        self,
        books: Books,
        key: CallKey,
        *,
        tier: str,
        flight: Flight,
        is_repeatable: bool,
        is_checked: bool = True,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_end` is called once, when nothing more will come of it. Not `is_checked` is a claim
        that the books may have an answer to."""
        self._books = books
        self._key = key
        self._tier = tier
        self._flight = flight
        self._is_repeatable = is_repeatable
        self._is_checked = is_checked
        self._on_end = on_end
        self.has_past = False
        """Something was spent under the call's key before. Set by the ledger."""
        self._is_spent = False
        self._users = 1
        self._is_open = False
        self._is_answered = False
        self._under_way: dict[str, Hold] = {}
        self._presumed: set[str] = set()

    async def check(self) -> None:
        """Raise ClaimLostError where the books have the call already.

        They are asked unless they were before. So does whoever is about to wait or to fail: a
        repeat of an answered call gets its answer at once and come what may.
        """
        if not self._is_checked:
            self._is_checked = True
            if await self._books.commits.post(LookUp(self._key)) is not None:
                raise ClaimLostError

    async def hold(self, reservation: Reservation, model: str) -> str:
        """Write down what an exchange may take, before it begins; returns the exchange's id.

        Raises ClaimLostError, and LedgerUnavailableError: then it must not begin.
        """
        amounts = Amounts(1, reservation.tokens, reservation.cost_usd_nanos)
        return await self.confirm(self.post_hold(model, amounts, reservation.output_tokens_max))

    def post_hold(self, model: str, amounts: Amounts, output_tokens: int) -> PostedHold:
        """Have it written down; the exchange must not begin before `confirm` has returned."""
        hold = Hold(
            exchange_id=self._books.new_id(),
            model=model,
            input_tokens=amounts.tokens - output_tokens,
            output_tokens=output_tokens,
            cost_usd_nanos=amounts.cost_usd_nanos,
        )
        if self._is_open:
            is_ours = self._books.commits.post(HoldAgain(self._key, self._books.owner, hold))
        else:
            # Set first: a caller who goes away while it is written must still release it.
            self._is_open = self._is_checked = True
            is_ours = self._open(hold)
        self._presume_others()
        return PostedHold(hold, is_ours)

    async def confirm(self, posted: PostedHold) -> str:
        """Wait until it is written; returns and raises like `hold`."""
        if not await posted.is_ours:
            self._is_open = False
            raise ClaimLostError
        self._under_way[posted.hold.exchange_id] = posted.hold
        return posted.hold.exchange_id

    def drop_hold(self, exchange_id: str, model: str) -> None:
        """Have written down that the exchange did not begin; nobody needs to wait for it."""
        del self._under_way[exchange_id]  # else it would be booked as one that goes on
        self.post_hold(model, NOTHING, 0)

    async def settle(
        self, exchange_id: str, model: str, spend: Spend, completion: Completion | None
    ) -> None:
        """Write down what an exchange took and, with a completion, the call's answer.

        Both become durable together. A ledger that cannot be reached is logged and no error: the
        money is spent, and its hold stays in the books in place of it.
        """
        try:
            await self._settle(exchange_id, model, spend, completion)
        except LedgerUnavailableError:
            _log.error("an exchange was not recorded", extra={"exchange": exchange_id})

    async def keep(self, recorded: RecordedAnswer) -> None:
        """Write down that the call gets an answer that was given before, for nothing.

        Only where the call can be repeated is it waited for: else nothing depends on it. Raises
        ClaimLostError and LedgerUnavailableError.
        """
        books = self._books
        record = ExchangeRecord(
            exchange_id=books.new_id(),
            key=self._key,
            tier=self._tier,
            model=recorded.model,
            ended_us=books.now_us(),
            spend=Spend(),
            is_answer=False,
            is_cached=True,
        )
        if not self._is_repeatable:
            books.commits.post(KeepAnswer(owner=books.owner, exchange=record, answer=None))
            return
        stored = await books.store(recorded)
        no_hold = Hold(
            exchange_id=record.exchange_id,
            model=recorded.model,
            input_tokens=0,
            output_tokens=0,
            cost_usd_nanos=0,
        )
        self._is_open = True
        # In this order: where the call cannot be opened, nothing is there to keep the answer in.
        opened = self._open(no_hold)
        kept = books.commits.post(KeepAnswer(owner=books.owner, exchange=record, answer=stored))
        if not await opened:
            self._is_open = False
            raise ClaimLostError
        await kept
        self._is_answered = True
        self._flight.recorded = recorded

    def join(self) -> None:
        """Add somebody who will leave."""
        self._users += 1

    def leave(self) -> None:
        """Say that nothing more comes from one of those who have it."""
        self._users -= 1
        if self._users:
            return
        self._flight.is_leaving = True
        if self._is_open and not self._is_answered:
            is_spent = self._is_repeatable and (self.has_past or self._is_spent)
            released = self._books.commits.post(Release(self._key, self._books.owner, is_spent))
            released.add_done_callback(lambda _: self._end())
        else:
            self._end()

    def _open(self, hold: Hold) -> asyncio.Future[bool]:
        books = self._books
        return books.commits.post(
            OpenCall(
                key=self._key,
                digest=self._flight.digest,
                tier=self._tier,
                owner=books.owner,
                hold=hold,
                now_us=books.now_us(),
                is_again=self.has_past,
            )
        )

    async def _settle(
        self, exchange_id: str, model: str, spend: Spend, completion: Completion | None
    ) -> None:
        books = self._books
        record = ExchangeRecord(
            exchange_id=exchange_id,
            key=self._key,
            tier=self._tier,
            model=model,
            ended_us=books.now_us(),
            spend=spend,
            is_answer=completion is not None and not self._is_answered,
            is_presumed=exchange_id in self._presumed,
        )
        self._under_way.pop(exchange_id, None)
        self._is_spent = self._is_spent or record.is_to_be_booked
        self._presume_others()
        if completion is None or self._is_answered:  # of two attempts at once the first counts
            await books.commits.post(Fail(books.owner, record))
            return
        recorded = RecordedAnswer(completion, model)
        # Whatever becomes of the record: those who wait here need not pay for another.
        self._flight.recorded = recorded
        self._is_answered = True
        try:
            stored = await books.store(recorded) if self._is_repeatable else None
        except BaseException:
            self._is_answered = False
            books.commits.post(Fail(books.owner, record))  # the money at least
            raise
        await books.commits.post(KeepAnswer(owner=books.owner, exchange=record, answer=stored))

    def _presume_others(self) -> None:
        """Book what else goes on at its worst case: its hold is overwritten, or ends with the one
        that is settled, and would be lost with this process."""
        books = self._books
        for exchange_id, hold in self._under_way.items():
            if exchange_id in self._presumed:
                continue
            self._presumed.add(exchange_id)
            self._is_spent = True
            worst = Spend(
                tokens=Tokens(input=hold.input_tokens, output=hold.output_tokens),
                cost_usd_nanos=hold.cost_usd_nanos,
                is_estimated=True,
            )
            record = ExchangeRecord(
                exchange_id=exchange_id,
                key=self._key,
                tier=self._tier,
                model=hold.model,
                ended_us=books.now_us(),
                spend=worst,
                is_answer=False,
            )
            books.commits.post(Presume(record))

    def _end(self) -> None:
        if not self._flight.ended.is_set():
            self._flight.ended.set()
            self._on_end()

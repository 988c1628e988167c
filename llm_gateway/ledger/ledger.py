"""Makes repeats of a call one call: the first one is made, the others wait for its answer or get
it from the books. Who waits for whom within this process is memory; across processes the books
decide, and are asked again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from common.background import end_tasks
from common.errors import RequestIdReusedError
from llm_gateway.answers import Booked
from llm_gateway.calls import Call
from llm_gateway.errors import AnswerUnreadableError, LedgerUnavailableError
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.claim import Claim, Flight
from llm_gateway.ledger.entries import (
    CallEntry,
    CallKey,
    CallState,
    CallSums,
    RecordedAnswer,
    digest_of,
)
from llm_gateway.ledger.lives import Lives
from llm_gateway.ledger.operations import Bury, KeepLease, LookUp, RunSum, SumCall, SumCalls, SumRun

_POLL_S = 0.02
_POLL_S_MAX = 0.5
_MICROS = 1_000_000
_log = logging.getLogger(__name__)


class Ledger:
    """The gateway's memory of calls."""

    def __init__(
        self,
        books: Books,
        *,
        lease_s: float,
        lives: Lives | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`lease_s` is how long this process counts as alive without a sign of life; `lives` are
        those of others that can be seen."""
        self._books = books
        self._lease_s = lease_s
        self._lives = lives
        self._sleep = sleep
        self._on_unknown: list[Callable[[str, str], None]] = []
        self._flights: dict[CallKey, Flight] = {}

    def on_unknown(self, callback: Callable[[str, str], None]) -> None:
        """Tell `callback` tenant and run of each dead process's call that is booked."""
        self._on_unknown.append(callback)

    def enter_new(self, call: Call) -> Claim | None:
        """Return the claim to make a call that nobody makes in this process; None for others.

        The books are not asked: where they have the call, the claim is lost later.
        """
        tenant, run = call.token.tenant, call.token.run
        if not call.request_id:
            key = CallKey(tenant, run, f"~{self._books.new_id()}")
            return self._claim(key, call, Flight(b""), is_repeatable=False, is_checked=True)
        key = CallKey(tenant, run, call.request_id)
        if key in self._flights:
            return None
        flight = self._flights[key] = Flight(digest_of(call.prompt))
        return self._claim(key, call, flight, is_repeatable=True, is_checked=False)

    async def enter(self, call: Call) -> Claim | RecordedAnswer:
        """Return the recorded answer of a call, or the claim to make it, which must be left.

        Waits while another caller makes the same call. Raises RequestIdReusedError,
        AnswerUnreadableError and LedgerUnavailableError.
        """
        if not call.request_id and (claim := self.enter_new(call)) is not None:
            return claim
        key = CallKey(call.token.tenant, call.token.run, call.request_id)
        digest = digest_of(call.prompt)
        while (flight := self._flights.get(key)) is not None:
            if flight.digest != digest and not flight.is_leaving:
                raise RequestIdReusedError(call.request_id)
            await flight.ended.wait()
            if flight.recorded is not None and flight.digest != digest:
                raise RequestIdReusedError(call.request_id)
            if flight.recorded is not None:
                return flight.recorded
        flight = self._flights[key] = Flight(digest)
        claim = self._claim(key, call, flight, is_repeatable=True, is_checked=True)
        try:
            entry = await self._ended(key, digest)
            if entry is not None and entry.state is CallState.ANSWERED:
                flight.recorded = await self._read(key, entry)
        except BaseException:
            claim.leave()
            raise
        if flight.recorded is None:
            claim.has_past = entry is not None
            return claim
        claim.leave()
        return flight.recorded

    async def booked(self, call: Call) -> Booked:
        """Return what was booked under a call's request id; raises LedgerUnavailableError."""
        key = CallKey(call.token.tenant, call.token.run, call.request_id)
        return await self._books.commits.post(SumCall(key))

    async def call_sums(self, tenant: str, run: str, prefix: str) -> CallSums:
        """Return what was booked for calls of a run; raises LedgerUnavailableError."""
        return await self._books.commits.post(SumCalls(tenant, run, prefix))

    async def run_sum(self, tenant: str, run: str) -> RunSum:
        """Return what a run has taken by the books: settled, or held by other processes."""
        return await self._books.commits.post(SumRun(tenant, run, self._books.owner))

    async def bury(self, burial: Bury) -> None:
        """Book the call of a dead process and free its key."""
        if await self._books.commits.post(burial):
            _log.warning("the outcome of a dead gateway's call is unknown, and booked at worst")
            for callback in self._on_unknown:
                callback(burial.key.tenant, burial.key.run)

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Be known to live while the block lasts; the books must be open until after it."""
        await self._keep_lease()
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            await end_tasks(beating)
            await self._books.commits.flush()
            with contextlib.suppress(LedgerUnavailableError):
                await self._books.commits.post(KeepLease(self._books.owner, 0))

    def _claim(
        self, key: CallKey, call: Call, flight: Flight, *, is_repeatable: bool, is_checked: bool
    ) -> Claim:
        return Claim(
            self._books,
            key,
            tier=call.prompt.tier,
            flight=flight,
            is_repeatable=is_repeatable,
            is_checked=is_checked,
            on_end=lambda: self._forget(key),
        )

    def _forget(self, key: CallKey) -> None:
        self._flights.pop(key, None)

    async def _ended(self, key: CallKey, digest: bytes) -> CallEntry | None:
        """Return what the books have of a call that nobody makes, once that is so: its answer, or
        that something was spent under its key; None for nothing."""
        pause_s = _POLL_S
        while True:
            entry = await self._books.commits.post(LookUp(key))
            if entry is None or entry.state is CallState.SPENT:
                return entry
            if self._is_dead(entry):
                await self.bury(Bury(key, entry.owner, self._books.now_us()))
                continue
            if entry.digest != digest:
                raise RequestIdReusedError(key.request_id)
            if entry.state is CallState.ANSWERED:
                return entry
            await self._sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)

    def _is_dead(self, entry: CallEntry) -> bool:
        """Whether nobody works on an open call: this process knows what it works on."""
        if entry.state is not CallState.OPEN:
            return False
        is_ours = entry.owner == self._books.owner
        is_late = entry.lease_until_us <= self._books.now_us()
        return is_ours or is_late or (self._lives is not None and self._lives.is_dead(entry.owner))

    async def _read(self, key: CallKey, entry: CallEntry) -> RecordedAnswer:
        try:
            return await self._books.fetch(entry.answer)
        except (OSError, ValueError) as error:
            _log.exception("a recorded answer cannot be read", extra={"run": key.run})
            raise AnswerUnreadableError(key.request_id) from error

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            # Logged where it failed; without the store no call is made either.
            with contextlib.suppress(LedgerUnavailableError):
                await self._keep_lease()

    async def _keep_lease(self) -> None:
        until_us = self._books.now_us() + int(self._lease_s * _MICROS)
        await self._books.commits.post(KeepLease(self._books.owner, until_us))


def new_owner() -> str:
    """Return a name for this process that no other one has had."""
    return secrets.token_hex(8)

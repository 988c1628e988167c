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

from common.errors import RequestIdReusedError
from llm_gateway.calls import Call
from llm_gateway.errors import AnswerUnreadableError, LedgerUnavailableError
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.claim import Claim, Flight
from llm_gateway.ledger.entries import (
    CallEntry,
    CallKey,
    CallState,
    RecordedAnswer,
    digest_of,
)
from llm_gateway.ledger.operations import Bury, KeepLease, LookUp, RunSum, SumRun

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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`lease_s` is how long this process counts as alive without a sign of life."""
        self._books = books
        self._lease_s = lease_s
        self._sleep = sleep
        self._on_unknown: list[Callable[[str, str], None]] = []
        self._flights: dict[CallKey, Flight] = {}

    def on_unknown(self, callback: Callable[[str, str], None]) -> None:
        """Tell `callback` tenant and run of each dead process's call that is booked."""
        self._on_unknown.append(callback)

    async def enter(self, call: Call) -> Claim | RecordedAnswer:
        """Return the recorded answer of a call, or the claim to make it, which must be left.

        Waits while another caller makes the same call. Raises RequestIdReusedError,
        AnswerUnreadableError and LedgerUnavailableError.
        """
        tenant, run = call.token.tenant, call.token.run
        if not call.request_id:
            key = CallKey(tenant, run, f"~{self._books.new_id()}")
            return self._claim(key, call, Flight(b""), is_repeatable=False)
        key = CallKey(tenant, run, call.request_id)
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
        claim = self._claim(key, call, flight, is_repeatable=True)
        try:
            flight.recorded = await self._recorded(key, digest)
        except BaseException:
            claim.leave()
            raise
        if flight.recorded is None:
            return claim
        claim.leave()
        return flight.recorded

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
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await self._books.commits.flush()
            with contextlib.suppress(LedgerUnavailableError):
                await self._books.commits.post(KeepLease(self._books.owner, 0))

    def _claim(self, key: CallKey, call: Call, flight: Flight, *, is_repeatable: bool) -> Claim:
        return Claim(
            self._books,
            key,
            tier=call.prompt.tier,
            flight=flight,
            is_repeatable=is_repeatable,
            on_end=lambda: self._forget(key),
        )

    def _forget(self, key: CallKey) -> None:
        self._flights.pop(key, None)

    async def _recorded(self, key: CallKey, digest: bytes) -> RecordedAnswer | None:
        """Return what the books have for a call that nobody in this process makes."""
        pause_s = _POLL_S
        while True:
            entry = await self._books.commits.post(LookUp(key))
            if entry is None:
                return None
            if self._is_dead(entry):
                await self.bury(Bury(key, entry.owner, self._books.now_us()))
                continue
            if entry.digest != digest:
                raise RequestIdReusedError(key.request_id)
            if entry.state is CallState.ANSWERED:
                return await self._read(key, entry)
            await self._sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)

    def _is_dead(self, entry: CallEntry) -> bool:
        """Whether nobody works on an open call: this process knows what it works on."""
        is_ours = entry.owner == self._books.owner
        is_late = entry.lease_until_us <= self._books.now_us()
        return entry.state is CallState.OPEN and (is_ours or is_late)

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

"""The end of calls that nobody waits for: what they took is booked before long, and told.

Only what was abandoned is hurried; a call that somebody waits for takes its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.run_token import RunToken
from llm_gateway.calls import Call
from llm_gateway.ledger.entries import CallSums
from llm_gateway.ledger.ledger import Ledger

_POLL_S = 0.02
_POLL_S_MAX = 0.1
"""Each look reads all that is booked for the run."""
_BOOKING_S = 0.5
"""For what was hurried to be booked."""


class Settlement:
    """Settles calls of runs that are over."""

    def __init__(self, ledger: Ledger, hurry: Callable[[Callable[[Call], bool]], None]) -> None:
        """`hurry` ends those abandoned exchanges whose calls it is told to."""
        self._ledger = ledger
        self._hurry = hurry

    async def settle(self, token: RunToken, prefix: str, *, grace_s: float) -> CallSums:
        """Return what the calls of a run took whose request ids begin with `prefix`, once none is
        open, or when the time for that is over. Raises LedgerUnavailableError."""

        def is_meant(call: Call) -> bool:
            is_of_run = (call.token.tenant, call.token.run) == (token.tenant, token.run)
            return is_of_run and call.request_id.startswith(prefix)

        now = asyncio.get_running_loop().time
        hurry_at = now() + grace_s
        quiet, pause_s = 0, _POLL_S
        while True:
            sums = await self._ledger.call_sums(token.tenant, token.run, prefix)
            # Twice: news that a caller is gone takes a moment too, and the last of a line of calls
            # can be about to begin.
            quiet = 0 if sums.open_calls else quiet + 1
            if quiet > 1 or now() >= hurry_at + _BOOKING_S:
                return sums
            if now() >= hurry_at:
                self._hurry(is_meant)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)

"""Keeps the run token of a session fresh while code runs in it, where tokens live for less long
than code may. What a token permits is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from common.background import end_tasks
from common.errors import ReceivedError

_RENEWALS_A_LIFETIME = 2
_log = logging.getLogger(__name__)


class Renewable(Protocol):
    """The door to sessions."""

    async def refresh_run_token(self, session: str, run_token: str) -> None:
        """Replace a session's run token; raises ReceivedError."""


@contextlib.asynccontextmanager
async def renewed_tokens(
    sandbox: Renewable, session: str, mint: Callable[[], str], lifetime_s: float
) -> AsyncIterator[None]:
    """Give a session a token of `mint` at half the lifetime of each, while the block lasts. With a
    lifetime of 0 tokens live as long as their run."""
    if not lifetime_s:
        yield
        return

    async def renew() -> None:
        await sandbox.refresh_run_token(session, mint())

    renewing = asyncio.create_task(_at_intervals(renew, lifetime_s / _RENEWALS_A_LIFETIME))
    try:
        yield
    finally:
        await end_tasks(renewing)


async def _at_intervals(renew: Callable[[], Awaitable[None]], interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            await renew()
        except ReceivedError as error:
            # Where the session is gone its code says so; else the next one may come through.
            _log.warning("a run token was not renewed", extra={"reason": error.reason_name})

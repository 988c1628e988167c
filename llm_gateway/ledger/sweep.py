"""Ends the open calls of dead gateways and forgets what is older than the retention, for ever in
the background and a little at a time: calls wait for the same writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.answer_store import AnswerStore
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.ledger.lives import Lives
from llm_gateway.ledger.operations import FindDead, Forget, KeepLease

_ROWS_MAX = 200
"""Touched in one transaction."""
_FORGET_INTERVAL_S = 3_600.0
_DAY_S = 86_400.0
_MICROS = 1_000_000
_log = logging.getLogger(__name__)


class Sweep:
    """What keeps a ledger small and its books complete."""

    def __init__(
        self,
        ledger: Ledger,
        commits: GroupCommit,
        answers: AnswerStore,
        *,
        owner: str,
        retention_days: int,
        lives: Lives | None = None,
        interval_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Dead gateways other than `owner`, this one, are looked for at each interval, and old
        rows each hour; `now` gives Unix time."""
        self._ledger = ledger
        self._owner = owner
        self._commits = commits
        self._answers = answers
        self._lives = lives
        self._retention_s = retention_days * _DAY_S
        self._interval_s = interval_s
        self._now = now

    async def run(self) -> None:
        """Sweep at once and then at each interval, until it is cancelled."""
        forget_at = self._now()
        while True:
            try:
                await self.bury_dead()
                if self._now() >= forget_at:
                    await self.forget_old()
                    forget_at = self._now() + _FORGET_INTERVAL_S
            except (LedgerUnavailableError, OSError) as error:
                _log.warning("a sweep broke off", extra={"kind": type(error).__name__})
            await asyncio.sleep(self._interval_s)

    async def bury_dead(self) -> None:
        """End every open call whose gateway is dead."""
        seen = [] if self._lives is None else self._lives.dead()
        for dead in seen:
            await self._commits.post(KeepLease(dead, 0))
        while burials := await self._commits.post(FindDead(self._owner, self._now_us(), _ROWS_MAX)):
            for burial in burials:
                await self._ledger.bury(burial)
        for dead in seen:
            assert self._lives is not None
            self._lives.forget(dead)

    async def forget_old(self) -> None:
        """Delete all that is older than the retention."""
        before_s = self._now() - self._retention_s
        while await self._commits.post(Forget(int(before_s * _MICROS), _ROWS_MAX)):
            pass
        await self._answers.forget(before_s)

    def _now_us(self) -> int:
        return int(self._now() * _MICROS)

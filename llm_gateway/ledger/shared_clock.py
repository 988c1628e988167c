"""The time that gateways agree on: the database's, where they share one over a network.

Leases are compared by processes on several machines, whose clocks may differ by more than a lease,
or be set: a call whose gateway only seems dead would be made, and paid, once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from sqlalchemy import BigInteger, func, select
from sqlalchemy import cast as sql_cast

from common.background import end_tasks
from common.database import Database, DatabaseAwayError

_TRIP_S_MAX = 1.0
"""How long an answer may take to tell the time by: half of that is how wrong it may be."""
_MICROS = 1_000_000
_log = logging.getLogger(__name__)


class SharedClock:
    """Unix time; open it before it is asked. In SQLite all are on one machine, whose clock it is.

    What happens between two looks is measured by a clock that nobody sets.
    """

    def __init__(
        self,
        database: Database,
        *,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`steady` gives seconds since whenever, `wall` Unix time."""
        self._database = database
        self._steady = steady
        self._wall = wall
        self._ahead_s: float | None = None
        """Of the steady clock, the database's; None where that is this machine's own."""

    def now(self) -> float:
        """Return seconds of Unix time."""
        return self._wall() if self._ahead_s is None else self._steady() + self._ahead_s

    @contextlib.asynccontextmanager
    async def running(self, interval_s: float) -> AsyncIterator[None]:
        """Look at the database's clock, and again at each interval, while the block lasts.

        Raises DatabaseAwayError."""
        if not self._database.is_shared:
            yield
            return
        await self.look()
        looking = asyncio.create_task(self._look_again(interval_s))
        try:
            yield
        finally:
            await end_tasks(looking)

    async def look(self) -> None:
        """Take over the database's time, where it is told soon enough; raises DatabaseAwayError."""
        seconds = func.extract("epoch", func.clock_timestamp())
        async with self._database.reading() as connection:
            asked_s = self._steady()
            told_us = await connection.scalar(select(sql_cast(seconds * _MICROS, BigInteger)))
            trip_s = self._steady() - asked_s
        if self._ahead_s is None or trip_s <= _TRIP_S_MAX:
            self._ahead_s = int(told_us or 0) / _MICROS - (asked_s + trip_s / 2)

    async def _look_again(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.look()
            except DatabaseAwayError:
                _log.warning("the database is away; its clock is not looked at")

"""How many exchanges a deployment is given at a time: at most what is configured, half of what was
under way after each rate limit, and one more for each round that goes well.

So a batch finds the concurrency that a provider bears without being told it.
"""

from __future__ import annotations

import asyncio
import math

from llm_gateway.fair_queue import FairQueue


class Slots:
    """The free places at one deployment; tenants take turns, and of a tenant whoever waited longest
    is next."""

    def __init__(self, slots_max: int) -> None:
        self._max = slots_max
        self._limit = float(slots_max)
        self._taken = 0
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._halved_at = -math.inf

    @property
    def limit(self) -> int:
        """How many may be taken at present."""
        return int(self._limit)

    async def acquire(self, tenant: str = "") -> None:
        """Take a slot for a tenant; waits for one."""
        if self.take():
            return
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(tenant, free)
        try:
            await free
        except asyncio.CancelledError:
            if free.done() and not free.cancelled():
                self.release()
            raise

    def take(self) -> bool:
        """Take a slot that is free and that nobody waits for; False where there is none."""
        is_free = self._taken < self.limit and not self._waiting
        self._taken += is_free
        return is_free

    def release(self) -> None:
        """Give one back."""
        self._taken -= 1
        self._serve()

    def resize(self, slots_max: int) -> None:
        """Take over a new configured number; what is known of the provider still holds."""
        if slots_max != self._max:
            is_limited = self._limit < self._max
            self._limit = min(self._limit, slots_max) if is_limited else float(slots_max)
            self._max = slots_max
            self._serve()

    def note_success(self) -> None:
        """Take in that the provider bore an exchange."""
        if self._limit < self._max:
            self._limit = min(self._max, self._limit + 1 / self._limit)
            self._serve()

    def note_rate_limit(self, began: float, now: float) -> None:
        """Take in that it did not bear one that began at a time of one clock, in seconds."""
        # All that were under way when a limit was hit are refused together: that is one verdict.
        if began >= self._halved_at:
            self._halved_at = now
            self._limit = max(1.0, min(self._limit, self._taken) / 2)

    def _serve(self) -> None:
        while self._waiting and self._taken < self.limit:
            free = self._waiting.pop()
            if not free.done():
                self._taken += 1
                free.set_result(None)

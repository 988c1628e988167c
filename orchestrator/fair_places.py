"""Places that tenants share: so many at a time, and of those who wait the tenant comes first that
has the fewest. A long line of one tenant holds up nobody else for longer than a place is taken.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator


class FairPlaces:
    """The places of one thing, in this process."""

    def __init__(self, places_max: int) -> None:
        self._free = places_max
        self._taken: collections.Counter[str] = collections.Counter()
        self._lines: dict[str, collections.deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def place(self, tenant: str, *, wait_s: float) -> AsyncIterator[None]:
        """Have a place while the block lasts; raises TimeoutError where none is free in time."""
        async with asyncio.timeout(wait_s):
            await self._take(tenant)
        try:
            yield
        finally:
            self._leave(tenant)

    async def _take(self, tenant: str) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, collections.deque()).append(waiting)
        self._pass_on()
        try:
            await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():  # it had come just then
                self._leave(tenant)
            raise

    def _leave(self, tenant: str) -> None:
        self._free += 1
        self._taken[tenant] -= 1
        self._taken += collections.Counter()  # forgets those that have none
        self._pass_on()

    def _pass_on(self) -> None:
        while self._free and self._lines:
            tenant = min(self._lines, key=lambda each: self._taken[each])
            # To the end of the lines: tenants that have as many take turns.
            line = self._lines.pop(tenant)
            waiting = line.popleft()
            if line:
                self._lines[tenant] = line
            if not waiting.cancelled():
                self._free -= 1
                self._taken[tenant] += 1
                waiting.set_result(None)

"""Work that several callers want at the same time and that is done once.

It goes on as long as one of them waits, whoever began it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Flight(Generic[Result]):
    """One piece of work under way."""

    def __init__(self, task: asyncio.Task[Result], on_abandoned: Callable[[], None]) -> None:
        self._task = task
        self._on_abandoned = on_abandoned
        self._waiting = 0

    async def outcome(self) -> Result:
        """Wait for the result, or raise what the work raised. The last one to be cancelled ends
        the work."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self._on_abandoned()
                self._task.cancel()


class Flights(Generic[Result]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[Result]] = {}
        self._tasks: set[asyncio.Task[Result]] = set()

    def get(self, key: bytes) -> Flight[Result] | None:
        """Return the work under way for a key."""
        return self._flights.get(key)

    def begin(
        self, key: bytes, work: Coroutine[Any, Any, Result], on_end: Callable[[], None]
    ) -> Flight[Result]:
        """Begin work for a key that has none; `on_end` is called once it is over."""
        task = asyncio.create_task(work)
        flight = self._flights[key] = Flight(task, lambda: self._forget(key, flight))
        self._tasks.add(task)

        def ended(done: asyncio.Task[Result]) -> None:
            self._tasks.discard(done)
            self._forget(key, flight)
            if not done.cancelled():
                done.exception()  # seen here, in case nobody waits
            on_end()

        task.add_done_callback(ended)
        return flight

    async def close(self) -> None:
        """End what is under way."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: bytes, flight: Flight[Result]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

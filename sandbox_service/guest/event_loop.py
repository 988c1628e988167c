"""An asyncio event loop without sockets: timers, tasks and futures are all there is.

`await` at top level, `asyncio.run`, `sleep` and `gather` work; reading from sockets does not.
"""

import asyncio
import time
from typing import Any


class CellLoop(asyncio.BaseEventLoop):
    """The loop of one session; it stays from cell to cell, so a task may outlive its cell."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Sleep()

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing but timers ever becomes ready."""

    def _write_to_self(self) -> None:
        """There is no other thread that could need waking."""


class _Sleep:
    """Stands where asyncio expects a selector, and only ever lets time pass."""

    def select(self, timeout: float | None) -> list[Any]:
        """Sleep until the next timer is due."""
        if timeout is None:
            raise RuntimeError("every task waits for something that can never happen")
        if timeout > 0:
            time.sleep(timeout)
        return []

    def close(self) -> None:
        """Nothing is held."""


def install() -> None:
    """Make `asyncio.run` and `asyncio.new_event_loop` use this loop."""
    asyncio.events.new_event_loop = asyncio.new_event_loop = CellLoop

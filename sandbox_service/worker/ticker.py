"""What stops running guests in time: the epoch of their engine, advanced every few milliseconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox_service.engine import GuestEngine

_TICK_S = 0.005
_LINGER_TICKS = 40
"""Without any guest it goes on this long, so that cells in quick succession do not wake it."""


class Ticker:
    """Advances the engine's epoch while any guest runs."""

    def __init__(self, engine: GuestEngine) -> None:
        self._engine = engine
        self._guests = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin ticking."""
        threading.Thread(target=self._tick, name="ticker", daemon=True).start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick at least as long as the block lasts."""
        with self._changed:
            self._guests += 1
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._guests -= 1

    def _tick(self) -> None:
        idle_ticks = 0
        while True:
            idle_ticks = 0 if self._guests else idle_ticks + 1
            if idle_ticks > _LINGER_TICKS:
                with self._changed:
                    while not self._guests:
                        self._changed.wait()
            time.sleep(_TICK_S)
            self._engine.tick()

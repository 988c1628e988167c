"""Says on a terminal, or in a log, which step is under way and how long it takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TextIO

_TERMINAL_PERIOD_S = 0.2
_LOG_PERIOD_S = 10.0


class Progress:
    """Progress of one piece of work, step after step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_live = stream.isatty()

    @contextlib.contextmanager
    def step(self, name: str, expected_s: float) -> Iterator[None]:
        """Show a step for as long as the block runs: one live line, or a line now and then."""
        started = time.monotonic()
        is_done = threading.Event()

        def show() -> None:
            period_s = _TERMINAL_PERIOD_S if self._is_live else _LOG_PERIOD_S
            while not is_done.wait(period_s):
                self._line(name, f"{time.monotonic() - started:.0f} s of about {expected_s:.0f} s")

        watcher = threading.Thread(target=show, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_done.set()
            watcher.join()
            self._line(name, f"{time.monotonic() - started:.1f} s", is_last=True)

    def _line(self, name: str, time_text: str, *, is_last: bool = False) -> None:
        start, end = ("\r\x1b[K", "\n" if is_last else "") if self._is_live else ("", "\n")
        self._stream.write(f"{start}guest: {name} · {time_text}{end}")
        self._stream.flush()

"""A watch for how soon something happens, on a machine that does other things as well: what a
process takes is what passes but for the time that it stands in line for a processor.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_NANOS = 1e9


class ProcessorWatch:
    """Runs from when it is made. It knows of the threads of this process alone: what one of them
    does may wait for another, as the event loop does for the database."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._before = _waited_s_by_thread()

    @property
    def waited_s(self) -> float:
        """How long its threads have waited for a processor, all together."""
        # Thread by thread: one that has ended since takes its whole life's waiting with it.
        now = _waited_s_by_thread()
        return sum(
            max(0.0, waited_s - self._before.get(thread, 0.0)) for thread, waited_s in now.items()
        )

    @property
    def passed_s(self) -> float:
        """What has passed but for that."""
        return time.monotonic() - self._begun_s - self.waited_s


def _waited_s_by_thread() -> dict[str, float]:
    waited_s: dict[str, float] = {}
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            counters = (thread / "schedstat").read_text().split()
            waited_s[thread.name] = int(counters[1]) / _NANOS
    return waited_s

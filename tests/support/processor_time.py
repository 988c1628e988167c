"""A watch for how soon something happens, on a machine that does other things as well: what a
process takes is what passes but for the time that it stands in line for a processor.
"""

from __future__ import annotations

import time
from pathlib import Path

_NANOS = 1e9


class ProcessorWatch:
    """Runs from when it is made. It knows of the main thread alone, where the event loop runs."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._waited_s = _waited_s()

    @property
    def waited_s(self) -> float:
        """How long the main thread has waited for a processor."""
        return _waited_s() - self._waited_s

    @property
    def passed_s(self) -> float:
        """What has passed but for that."""
        return time.monotonic() - self._begun_s - self.waited_s


def _waited_s() -> float:
    _, waited_ns, _ = Path("/proc/self/schedstat").read_text().split()
    return int(waited_ns) / _NANOS

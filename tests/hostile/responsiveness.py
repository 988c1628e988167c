"""A watch on the service from outside: how long its answers take while guests do their worst.

Time in which the machine ran something else instead of us is not counted: it says nothing of
the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 0.005


@dataclass
class Watch:
    """What was seen so far."""

    slowest_s: float = 0.0
    """The longest that an answer took."""
    answers: int = 0
    """Answers so far."""


@asynccontextmanager
async def watched(probe: Callable[[], Awaitable[object]]) -> AsyncIterator[Watch]:
    """Call the probe again and again for as long as the block runs."""
    watch = Watch()
    is_over = asyncio.Event()
    watching = asyncio.create_task(_keep_asking(probe, watch, is_over))
    try:
        yield watch
    finally:
        is_over.set()
        await watching


async def _keep_asking(
    probe: Callable[[], Awaitable[object]], watch: Watch, is_over: asyncio.Event
) -> None:
    while not is_over.is_set() or not watch.answers:
        started, waited_s = time.monotonic(), _time_not_run_s()
        await probe()
        elapsed_s = time.monotonic() - started - (_time_not_run_s() - waited_s)
        watch.slowest_s = max(watch.slowest_s, elapsed_s)
        watch.answers += 1
        try:
            await asyncio.wait_for(is_over.wait(), _PAUSE_S)
        except TimeoutError:
            continue


def _time_not_run_s() -> float:
    """Return how long our threads have been ready to run while the kernel ran others."""
    waited_ns = 0
    for counters in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # its thread has just ended
            waited_ns += int(counters.read_text().split()[1])
    return waited_ns / 1e9

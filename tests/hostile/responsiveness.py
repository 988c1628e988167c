"""A watch on the service from outside: how long its answers take while guests do their worst.

Time in which the machine ran something else instead of us is not counted: it says nothing of
the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.processor_time import ProcessorWatch

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
        answering = ProcessorWatch()
        await probe()
        watch.slowest_s = max(watch.slowest_s, answering.passed_s)
        watch.answers += 1
        try:
            await asyncio.wait_for(is_over.wait(), _PAUSE_S)
        except TimeoutError:
            continue

"""How samples are taken: one action after the other, with the bench's own garbage kept out."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Awaitable, Callable, Iterator


async def timed(action: Callable[[], Awaitable[object]], *, samples: int) -> list[float]:
    """Return the seconds of each run of an action, after one that is not counted."""
    times = []
    with without_garbage():
        for _ in range(samples + 1):
            started = time.perf_counter()
            await action()
            times.append(time.perf_counter() - started)
    return times[1:]


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """Let no garbage collection of this process fall into the block.

    Best around all samples: a collection before each would let processors go to sleep, and what
    was measured then is how long they take to wake.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

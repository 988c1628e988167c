"""Work that must not stop half way, whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do all of some work, also for a caller that is cancelled meanwhile; it then hears of its
    cancellation when the work is done."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:  # more than once: by its caller, then at a drain
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen here; the cancellation goes before it
        raise cancelled
    return task.result()

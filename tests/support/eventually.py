"""Wait for a fact to become true, without guessing how long it takes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def eventually(
    fact: Callable[[], bool | Awaitable[bool]], *, within_s: float = 60.0, every_s: float = 0.01
) -> None:
    """Return once `fact()` is true; AssertionError when it is not within `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = fact()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not true within {within_s} s"
        await asyncio.sleep(every_s)

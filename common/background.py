"""Tasks that go on beside others until they are told to end."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 1.0


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when they have ended; what they raise is nobody's by then.

    One that goes on is cancelled again: `asyncio.wait_for` before Python 3.12, and so what is built
    on it, swallows a cancellation that comes in the moment when what it waits for is done.
    """
    left = {*tasks}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)

"""What something takes by itself, on a machine that does other things as well: what is slow by
itself is slow each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

_ATTEMPTS_MAX = 8


async def least(attempt: Callable[[], Awaitable[float]], *, under: float) -> float:
    """Make attempts, each of which tells what it took, until one took less than `under`; returns
    the least that one took."""
    taken = await attempt()
    for _ in range(_ATTEMPTS_MAX - 1):
        if taken < under:
            break
        taken = min(taken, await attempt())
    return taken

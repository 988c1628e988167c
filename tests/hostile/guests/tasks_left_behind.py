# Expect: completed
# Then: kept
"""Leaves a thousand tasks waiting in a loop that outlives the cell."""

import asyncio


async def wait_and_spin():
    await asyncio.Event().wait()
    while True:
        pass


async def leave():
    return [asyncio.ensure_future(wait_and_spin()) for _ in range(1_000)]


left = await leave()

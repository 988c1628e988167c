# Expect: raised KeyboardInterrupt
# Then: kept
"""An exception that asyncio lets through its loop, from a task beside the cell."""

import asyncio


async def interrupt():
    raise KeyboardInterrupt


await asyncio.gather(interrupt(), asyncio.sleep(0))

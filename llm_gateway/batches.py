"""Works on the items of a batch concurrently and gives each outcome as soon as it is there.

No item is read before there is a slot for it, and a slot is free again only once its outcome was
taken: neither a fast sender nor a slow reader fills the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CONCURRENCY_DEFAULT = 64
CONCURRENCY_CEILING = 256


async def work_concurrently(
    items: AsyncIterator[Item],
    work: Callable[[Item], Awaitable[Result]],
    concurrency_max: int,
) -> AsyncIterator[Result]:
    """Give the results of `work` in the order in which they are ready.

    An exception of `items` or `work` ends everything; so does closing the iterator. Not a
    TaskGroup, which cannot be left from another task, as an abandoned generator is.
    """
    slots = asyncio.Semaphore(concurrency_max)
    ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
    working: set[asyncio.Task[Result]] = set()

    async def run(item: Item) -> Result:
        return await work(item)

    async def feed() -> None:
        await slots.acquire()
        async for item in items:
            task = asyncio.create_task(run(item))
            working.add(task)
            task.add_done_callback(ended.put_nowait)
            await slots.acquire()

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(ended.put_nowait)
    try:
        is_fed = False
        while working or not is_fed:
            task = await ended.get()
            if task in working:
                working.discard(task)
                yield task.result()
                slots.release()
            else:
                task.result()
                is_fed = True
    finally:
        left = [feeder, *working]
        for unfinished in left:
            unfinished.cancel()
        await asyncio.gather(*left, return_exceptions=True)

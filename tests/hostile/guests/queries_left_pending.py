# Expect: completed
# Then: kept
"""Asks, and looks away: tasks of the cell that wait for sub-models when it ends."""

import asyncio


async def ask():
    return await llm_query("hello")


async def begin():
    return [asyncio.ensure_future(ask()) for _ in range(50)]


pending = await begin()

# Expect: raised RuntimeError
# Then: kept
"""Awaits what nobody will ever set: the loop must say so and not wait for ever."""

import asyncio

await asyncio.Event().wait()

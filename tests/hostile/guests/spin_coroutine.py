# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A task that yields for ever keeps the event loop turning without anything to wait for."""

import asyncio

while True:
    await asyncio.sleep(0)

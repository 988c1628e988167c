# Expect: raised GeneratorExit
# Then: kept
"""Raises what generators and coroutines take for their own end, at top level after an await."""

import asyncio

await asyncio.sleep(0)
raise GeneratorExit

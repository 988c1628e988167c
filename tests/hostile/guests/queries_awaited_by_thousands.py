# Expect: completed
# Then: kept
# Limits: sub_calls=10
"""Awaits far more queries at once than the session may make."""

import asyncio

results = await asyncio.gather(*[llm_query("again") for _ in range(3_000)], return_exceptions=True)
assert sum(isinstance(result, str) for result in results) <= 10
assert sum(isinstance(result, Exception) for result in results) >= 2_990

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=400_000_000 sub_calls=20
"""Hands out more queries than can ever be made, lazily and without end."""

import itertools
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(8) as executor:
    for prompt in itertools.count():
        executor.submit(llm_query, f"number {prompt}")

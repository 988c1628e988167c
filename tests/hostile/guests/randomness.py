# Expect: completed
# Then: kept
# Limits: memory_mib=128
"""Randomness by the megabyte, and sizes that are none."""

import os
import random
import secrets

assert len(set(os.urandom(4 << 20))) == 256
refused = 0
for size in (-1, 1 << 31, 1 << 40):
    try:
        os.urandom(size)
    except (ValueError, MemoryError, OverflowError):
        refused += 1
assert refused == 3, refused
assert secrets.token_bytes(64) != secrets.token_bytes(64)
assert random.SystemRandom().getrandbits(100_000) != 0

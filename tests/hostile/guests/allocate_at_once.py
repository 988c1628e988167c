# Expect: completed
# Then: kept
# Limits: memory_mib=96
"""Asks for more than there is in one piece, in every way that multiplies."""

refused = 0
for size in (1 << 27, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 62):
    for make in (bytearray, bytes, lambda n: "x" * n, lambda n: [None] * n, lambda n: (0,) * n):
        try:
            make(size)
        except (MemoryError, OverflowError):
            refused += 1
assert refused == 30, refused

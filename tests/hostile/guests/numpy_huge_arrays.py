# Expect: completed
# Then: kept
# Limits: memory_mib=128
"""Shapes whose size overflows, is negative, or is simply too large."""

import numpy

refused = 0
for shape in (1 << 40, (1 << 20, 1 << 20), (1 << 31, 1 << 31, 1 << 31), -1, (1 << 29,)):
    for make in (numpy.zeros, numpy.ones, numpy.empty):
        try:
            make(shape)
        except (MemoryError, ValueError, OverflowError):
            refused += 1
assert refused == 15, refused

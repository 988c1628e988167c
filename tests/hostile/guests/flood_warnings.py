# Expect: completed
# Then: kept
# Limits: output_bytes=65536
"""Warnings are written by Python itself, to a stream that the code may have replaced."""

import warnings

warnings.simplefilter("always")
for number in range(500):
    warnings.warn(f"number {number} " + "!" * 1_000, stacklevel=1)

# Expect: trapped
# Then: restored
"""Tuples in tuples are freed by recursion in C, which their makers did not need."""

nested = ()
for _ in range(100_000):
    nested = (nested,)
del nested

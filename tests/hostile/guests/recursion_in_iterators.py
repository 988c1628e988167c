# Expect: trapped
# Then: restored
"""Iterators over iterators: asking the outermost one recurses in C, a hundred thousand deep."""

nested = iter(())
for _ in range(100_000):
    nested = map(int, nested)
next(nested, None)

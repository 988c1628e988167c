# Expect: raised RecursionError
# Then: kept
"""Comparing two deep values recurses in C."""

left, right = [], []
for _ in range(50_000):
    left, right = [left], [right]
left == right

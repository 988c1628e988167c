# Expect: raised ValueError
# Then: kept
"""Causes and contexts in a circle, and a chain of fifty thousand."""

first, second = ValueError("first"), ValueError("second")
first.__cause__, second.__cause__ = second, first
first.__context__, second.__context__ = second, first
last = first
for number in range(50_000):
    following = ValueError(number)
    following.__context__ = last
    last = following
raise last

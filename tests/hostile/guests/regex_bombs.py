# Expect: completed
# Then: kept
# Limits: fuel=3_000_000_000 memory_mib=128
"""Patterns that are hard to compile: deep, long, with repeats of repeats."""

import re

refused = 0
patterns = [
    "(?:" * 20_000 + "x" + ")" * 20_000,
    "(" * 5_000 + ")" * 5_000,
    "x{4294967296}",
    "(?=" * 5_000 + ")" * 5_000,
    "[" * 1_000,
    "(?P<a>x)(?P<a>y)",
    "(?(1)a|b",
    "\\N{NO SUCH NAME}",
    "x*" * 3 + "**",
]
for pattern in patterns:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError):
        refused += 1
assert refused == len(patterns), refused
re.compile("(?:(?:(?:x{1,9}){1,9}){1,9}){1,9}")
re.compile("|".join(f"word{number}" for number in range(2_000)))

# Expect: completed
# Then: kept
# Context: lazy
"""Patterns that would explode in a matcher that backtracks, or in one that builds automata."""

found = 0
for pattern in ("(a+)+$", "(a|a)*b", "(x+x+)+y", "[ab]*a[ab]{12}"):
    found += len(context.grep(pattern, limit=3))
refused = 0
for pattern in (
    "((a{100}){100}){100}",
    "(?=a)a",
    r"(a)\1",
    "(" * 5_000,
    "[",
    "a" * 5_000_000,
    "\ud800",
    5,
    None,
    b"a",
):
    try:
        context.grep(pattern)
    except (ValueError, TypeError, MemoryError, OSError):
        refused += 1
assert refused == 10, refused

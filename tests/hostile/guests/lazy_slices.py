# Expect: completed
# Then: kept
# Context: lazy
"""Positions in a lazy text that are negative, huge, reversed, or no positions at all."""

length = len(context)
assert length > 3_000_000
for key in (slice(length, length + 5), slice(-1, 0), slice(1 << 62, 1 << 63), slice(9, 3)):
    assert context[key] == "", key
assert context[-5:][::-1] == context[:-6:-1]
assert len(context[-(1 << 63) : 10]) == 10
refused = 0
for key in (length, -length - 1, 1 << 63, -(1 << 100), "0", None, 1.5, (0, 1), slice(0, 9, 0)):
    try:
        context[key]
    except (IndexError, TypeError, ValueError, OverflowError):
        refused += 1
assert refused == 9, refused

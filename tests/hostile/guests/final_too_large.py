# Expect: raised ValueError
# Then: kept
"""An answer above its limit, in characters that each take four bytes."""

FINAL("\U0001f600" * 300_000)

# Expect: raised ValueError
# Then: kept
"""An integer with more digits than Python writes."""

FINAL(1 << 10_000_000)

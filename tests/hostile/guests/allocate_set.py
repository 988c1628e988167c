# Expect: raised MemoryError
# Then: kept
# Limits: memory_mib=64
"""A table that doubles: its growth needs the old and the new one at the same time."""

set(range(1 << 26))

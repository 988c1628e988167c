# Expect: raised MemoryError
# Then: kept
# Limits: memory_mib=96
"""Takes a megabyte at a time, until Python says that there is none left."""

[bytearray(1 << 20) for _ in range(10_000)]

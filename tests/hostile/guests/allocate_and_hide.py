# Expect: out_of_memory MemoryError
# Then: restored
# Limits: memory_mib=64
"""Swallows the MemoryError and ends well, leaving no room for any cell to begin."""

hoard = []
size = 1 << 20
while size > 8:
    try:
        hoard.append(bytearray(size))
    except MemoryError:
        size //= 2

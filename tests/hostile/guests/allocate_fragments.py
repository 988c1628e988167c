# Expect: completed
# Then: kept
# Limits: memory_mib=96
"""Frees every other piece, so that there is much memory and no room."""

pieces = []
try:
    while True:
        pieces.append(bytearray(60_000))
except MemoryError:
    del pieces[::2]
try:
    bytearray(8 << 20)
    raise AssertionError("there was room")
except MemoryError:
    pieces.clear()

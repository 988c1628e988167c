# Expect: completed
# Then: kept
# Limits: memory_mib=160
"""Takes almost all and gives it back: the worker must give it back as well."""

held = [bytearray(b"\xff") * (1 << 20) for _ in range(80)]
del held

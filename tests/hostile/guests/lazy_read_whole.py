# Expect: completed
# Then: kept
# Context: lazy
# Limits: memory_mib=64
"""Makes one value of a text that is larger than such a value may be."""

refused = 0
for read in (
    lambda: context[:],
    lambda: context[::-1],
    lambda: context + "x",
    lambda: "".join(context.chunks(1 << 20)) * 20,
    lambda: context * 1000,
    lambda: context.encode(),
):
    try:
        read()
    except (MemoryError, ValueError, TypeError, AttributeError, OverflowError):
        refused += 1
assert refused >= 5, refused

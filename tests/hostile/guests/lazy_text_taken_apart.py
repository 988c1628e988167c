# Expect: trapped
# Then: restored
# Context: lazy
"""Gives a lazy text a length that none has: the report of the cell's end is refused for it."""

for name in type(context).__slots__:
    for value in (None, "x", 1 << 62, -1):
        try:
            setattr(context, name, value)
            context[0:10], context.find("a"), context.grep("a", limit=1), len(context)
        except Exception:
            continue

# Expect: completed
# Then: kept
"""Names that are no names: long, empty, lone surrogates, not even texts."""

names = globals()
names["x" * 5_000_000] = 1
names["\ud800"] = 2
names[""] = 3
names["a\0b"] = 4
names["\u202egnp.exe"] = 5
for key in (5, None, (1, 2), 2.5, b"bytes", float("nan"), frozenset()):
    names[key] = key

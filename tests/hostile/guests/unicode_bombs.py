# Expect: completed
# Then: kept
# Limits: fuel=3_000_000_000 memory_mib=96
"""Characters that grow when they are normalized, folded, escaped or coded."""

import unicodedata

refused = 0
for make in (
    lambda: unicodedata.normalize("NFKC", "\ufdfa" * 2_000_000),
    lambda: ("\u0390" * 20_000_000).upper(),
    lambda: ("\U0001f600" * 10_000_000).encode("unicode_escape"),
    lambda: ("\ud800" * 10_000_000).encode("utf-8", "xmlcharrefreplace"),
    lambda: "\u00e9" * 20_000_000 + "\U0001f600",
):
    try:
        make()
    except MemoryError:
        refused += 1
assert refused == 5, refused

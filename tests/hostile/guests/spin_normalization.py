# Expect: out_of_fuel
# Then: restored
# Limits: fuel=300_000_000
"""Combining marks are put in order by insertion: quadratic in a text that is made of them."""

import unicodedata

unicodedata.normalize("NFC", "a" + "\u0301\u0316" * 200_000)

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Nested repeats make the matcher try two to the fortieth ways, all within one call of C."""

import re

re.match(r"(a+)+$", "a" * 40 + "b")

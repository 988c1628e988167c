# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Decimal digits of a huge integer take quadratic time, once Python's own guard is taken away."""

import sys

sys.set_int_max_str_digits(0)
str(1 << 40_000_000)

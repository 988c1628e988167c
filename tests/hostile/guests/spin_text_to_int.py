# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Reading a huge integer is quadratic as well."""

import sys

sys.set_int_max_str_digits(0)
int("7" * 4_000_000)

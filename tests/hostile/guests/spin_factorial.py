# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Huge integers again, from a function of the C library of `math`."""

import math

math.factorial(10**7)

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=300_000_000
"""Every key has hash zero, so each insertion compares with all that came before it."""

import sys

modulus = sys.hash_info.modulus
{number * modulus: number for number in range(1, 200_000)}

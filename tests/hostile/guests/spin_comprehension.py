# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""An endless generator inside `any`: control goes back and forth between C and Python."""

any(False for _ in iter(int, 1))

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A sum over a range of a trillion runs in C from its first to its last item."""

sum(range(10**12))

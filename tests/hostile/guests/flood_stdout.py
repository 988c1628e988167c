# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000 output_bytes=65536
"""Prints without end: what is kept is bounded, the rest is counted and dropped."""

while True:
    print("flood " * 100)

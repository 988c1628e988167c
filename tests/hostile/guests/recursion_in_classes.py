# Expect: out_of_fuel
# Then: restored
# Limits: fuel=1_000_000_000
"""Classes that derive from one another: each has all before it among its bases."""

kind = type("First", (), {})
while True:
    kind = type("Next", (kind,), {})

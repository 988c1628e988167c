# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A loop that never ends: only the engine can stop it, since no call is ever made."""

while True:
    pass

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""The echo of a last expression calls a `__repr__` that never returns."""


class Endless:
    def __repr__(self):
        while True:
            pass


Endless()

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""Exceptions of a destructor are swallowed by Python; its running time must not be."""


class Endless:
    def __del__(self):
        while True:
            pass


endless = Endless()
del endless

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A value that spins when compared: giving it as an answer compares it with what JSON reads."""


class Endless(int):
    def __eq__(self, other):
        while True:
            pass

    __hash__ = int.__hash__


FINAL({"value": Endless(1)})

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""The cell ends well; describing its variables does not."""


class Endless:
    def __repr__(self):
        while True:
            pass


waiting = Endless()

# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A weak reference's callback runs while its object is being torn down."""

import weakref


class Victim:
    pass


def spin(_):
    while True:
        pass


victim = Victim()
reference = weakref.ref(victim, spin)
del victim

# Expect: raised RecursionError
# Then: kept
"""Takes Python's own bound away: what remains is the size of the stack."""

import sys

sys.setrecursionlimit((1 << 31) - 1)


class Deeper:
    def __getattr__(self, name):
        return getattr(self, name + "x"[:0])


Deeper().attribute

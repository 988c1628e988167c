# Expect: completed
# Then: kept
"""An array over all memory that the guest has: it may read itself, and finds no secret there.

The run token is the one thing worth finding that passes by near the guest.
"""

import re

import numpy


class Everywhere:
    def __init__(self, size):
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (1, False),
            "version": 3,
        }


top = bytes(8 << 20)  # large, so that it lies above what was there before
size = id(top) + len(top)
everything = numpy.asarray(Everywhere(size))
assert re.search(b"ast[.]parse|import ast|fathom_guest", everything.data)
assert not re.search(b"[r]un-token-of-the-corpus", everything.data)
del everything

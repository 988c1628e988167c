# Expect: trapped
# Then: restored
"""Writes over the whole interpreter that runs it: its own memory is all that it can reach."""

import numpy


class Everywhere:
    __array_interface__ = {
        "shape": (30 << 20,),
        "typestr": "|u1",
        "data": (1024, False),
        "version": 3,
    }


numpy.asarray(Everywhere())[:] = 0xA5

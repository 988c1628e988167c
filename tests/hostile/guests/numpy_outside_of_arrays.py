# Expect: trapped
# Then: restored
"""Strides that lead out of the array, and past the end of all memory that the guest has."""

import numpy

window = numpy.lib.stride_tricks.as_strided(numpy.zeros(1, "u1"), shape=(4000,), strides=(1 << 20,))
int(window.sum())

# Expect: trapped
# Then: restored
"""Reads a clock by a number that is none: the C library takes it for an address."""

import time

time.clock_getres(-1)

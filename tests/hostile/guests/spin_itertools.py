# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""An endless iterator eaten by C: no bytecode runs, nothing is allocated."""

import collections
import itertools

collections.deque(itertools.count(), maxlen=0)

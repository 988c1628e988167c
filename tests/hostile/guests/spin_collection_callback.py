# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""The garbage collector calls back, at a moment that the code did not choose."""

import gc


def spin(phase, info):
    while True:
        pass


gc.callbacks.append(spin)
gc.collect()

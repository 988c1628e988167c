# Expect: completed
# Then: kept
"""Freezes, disables and resets the collector, and leaves cycles that nobody will collect."""

import gc

gc.disable()
for _ in range(20_000):
    cycle = []
    cycle.append(cycle)
gc.freeze()
gc.set_threshold(1, 1, 1)
gc.set_debug(gc.DEBUG_SAVEALL)
gc.enable()

# Expect: trapped
# Then: restored
"""Finds every dictionary there is, the runtime's own modules included, and empties it."""

import gc

for found in gc.get_objects():
    if type(found) is dict and found is not globals():
        found.clear()

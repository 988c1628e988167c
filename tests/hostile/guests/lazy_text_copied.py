# Expect: completed
# Then: kept
# Context: lazy
"""Copies, pickles and compares what stands for a text of the host's."""

import copy
import pickle

refused = 0
for attempt in (
    lambda: pickle.dumps(context),
    lambda: type(context).__new__(int),
    lambda: context < "x",
    lambda: memoryview(context),
    lambda: "".join(context.encode()),
    lambda: int(context),
):
    try:
        attempt()
    except (TypeError, ValueError, AttributeError, pickle.PicklingError):
        refused += 1
assert refused == 6, refused
assert copy.deepcopy(context)[:4] == copy.copy(context)[:4] == "line"
assert context != context[:100] and context != 5

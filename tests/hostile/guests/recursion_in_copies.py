# Expect: raised RecursionError
# Then: kept
"""A deep copy recurses in Python, over values that were made without recursion."""

import copy

nested = {}
for _ in range(10_000):
    nested = {"a": nested}
copy.deepcopy(nested)

# Expect: completed
# Then: kept
"""Lowers the bound so far that the runtime itself could not say how the cell ended."""

import sys

for limit in range(1, 60):
    try:
        sys.setrecursionlimit(limit)
        break
    except RecursionError:
        continue

# Expect: raised RecursionError
# Then: kept
"""Pickling goes as deep as its value."""

import pickle

nested = ()
for _ in range(100_000):
    nested = (nested, 0)
pickle.dumps(nested)

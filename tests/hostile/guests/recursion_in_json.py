# Expect: raised RecursionError
# Then: kept
"""Both ways through JSON recurse in C."""

import json

try:
    json.loads("[" * 100_000 + "]" * 100_000)
except RecursionError:
    nested = []
    for _ in range(50_000):
        nested = {"a": [nested]}
    json.dumps(nested)

# Expect: raised RecursionError
# Then: kept
"""A list in a list in a list: its `repr` recurses in C."""

nested = []
for _ in range(100_000):
    nested = [nested]
nested

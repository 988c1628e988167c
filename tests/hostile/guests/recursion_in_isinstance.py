# Expect: completed
# Then: kept
"""`isinstance` descends into tuples of tuples, as deep as they are."""

refused = 0
kinds = int
for _ in range(20_000):
    kinds = (kinds,)
try:
    isinstance("", kinds)
except RecursionError:
    refused += 1
kinds = int
for _ in range(5_000):
    kinds = kinds | int
isinstance("", kinds)

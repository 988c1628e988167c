# Expect: raised RecursionError
# Then: kept
"""An answer nested so deeply that neither JSON nor `repr` can render it."""

nested = []
for _ in range(100_000):
    nested = [nested]
FINAL(nested)

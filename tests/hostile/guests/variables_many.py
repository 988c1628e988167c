# Expect: completed
# Then: kept
# Limits: memory_mib=128
"""A hundred thousand variables: reporting them has a bound."""

for number in range(100_000):
    globals()[f"variable{number}"] = number

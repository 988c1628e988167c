# Expect: raised ExceptionGroup
# Then: kept
"""Groups in groups: describing them recurses as deep as they are."""

error = ValueError("innermost")
for _ in range(5_000):
    error = ExceptionGroup("outer", [error])
raise error

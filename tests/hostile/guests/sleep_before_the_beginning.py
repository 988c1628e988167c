# Expect: completed
# Then: kept
"""Times that are no times: negative, not a number, beyond what the host's clock can hold."""

from time import sleep

refused = 0
for duration in (-1, float("nan"), float("inf"), 1e300, -1e300):
    try:
        sleep(duration)
    except (ValueError, OverflowError):
        refused += 1
assert refused == 5, refused

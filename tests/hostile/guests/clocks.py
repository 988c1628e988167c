# Expect: completed
# Then: kept
"""Sets clocks, which nobody may, and reads them as often as it likes."""

import time

refused = 0
for attempt in (
    lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
    lambda: time.clock_settime_ns(time.CLOCK_REALTIME, 0),
    lambda: time.pthread_getcpuclockid(0),
):
    try:
        attempt()
    except (OSError, AttributeError):
        refused += 1
assert refused == 3, refused
read = [time.monotonic_ns() for _ in range(1_000)]
assert read == sorted(read)

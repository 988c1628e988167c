# Expect: timed_out TimeoutError
# Then: restored
# Limits: time_s=0.2
"""Waits by asking the clock: each turn is a call to the host, and fuel hardly counts it."""

import time

end = time.monotonic() + 1e9
while time.monotonic() < end:
    pass

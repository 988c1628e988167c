# Expect: timed_out TimeoutError
# Then: restored
# Limits: time_s=0.2
"""Asks for randomness without end: the host's work must count as the cell's own time."""

import os

while True:
    os.urandom(1 << 20)

# Expect: completed
# Then: kept
"""Signals to itself, to its parent and to everyone; timers that would ring later."""

import os
import signal

tries = [
    lambda: signal.setitimer(signal.ITIMER_REAL, 0.001),
    lambda: signal.alarm(1),
    lambda: os.kill(os.getpid(), 9),
    lambda: os.kill(os.getppid(), 9),
    lambda: os.kill(-1, 9),
    lambda: os.killpg(0, 9),
    lambda: signal.pthread_kill(1, 9),
]
refused = 0
for attempt in tries:
    try:
        attempt()
    except (OSError, AttributeError, ValueError):
        refused += 1
assert refused == len(tries), refused

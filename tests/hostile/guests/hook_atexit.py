# Expect: completed
# Then: kept
"""What is to run when Python ends: it never ends, its memory is taken away."""

import atexit


def spin():
    while True:
        pass


for _ in range(10_000):
    atexit.register(spin)

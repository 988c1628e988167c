# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A stream of its own making that spins when the runtime flushes it."""

import sys


class Endless:
    def write(self, text):
        return len(text)

    def flush(self):
        while True:
            pass


sys.stdout = Endless()

# Expect: completed
# Then: kept
"""Objects that come back to life whenever they are freed."""

import gc


class Undead:
    def __init__(self):
        self.itself = self

    def __del__(self):
        graveyard.append(self)
        Undead()


graveyard = []
for _ in range(200):
    Undead()
    gc.collect(0)

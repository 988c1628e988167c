# Expect: raised ValueError
# Then: kept
"""A comparison that empties the list being sorted: C holds its items meanwhile."""


class Traitor:
    def __lt__(self, other):
        items.clear()
        items.extend([None] * 1000)
        return True


items = [Traitor() for _ in range(500)]
items.sort()

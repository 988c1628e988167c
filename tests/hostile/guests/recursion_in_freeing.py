# Expect: completed
# Then: kept
"""A chain of a hundred thousand objects, freed from its head: each frees the next."""


class Link:
    def __init__(self, following):
        self.following = following


head = None
for _ in range(100_000):
    head = Link(head)
del head

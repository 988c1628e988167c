"""A queue that is fair between parties: each gets its turn, whoever of it waited longest goes
first, and a thousand of one party delay another's one by a single turn.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by party, such as a tenant."""

    def __init__(self) -> None:
        # In the order of turns: the party at the front is next, and then goes to the back.
        self._parties: dict[str, deque[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._parties)

    def push(self, party: str, item: Item) -> None:
        """Put an item behind those of its party."""
        self._parties.setdefault(party, deque()).append(item)

    def pop(self) -> Item:
        """Take the first item of the party whose turn it is; raises KeyError where all is empty."""
        party = next(iter(self._parties), None)
        if party is None:
            raise KeyError("empty")
        items = self._parties.pop(party)
        item = items.popleft()
        if items:
            self._parties[party] = items
        return item

"""What tells the runs of a storm apart: a mark in each question and each prompt, by which
models know what to say, and what they are asked is counted.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Self

_FORM = re.compile(r"<<chaos-([a-z]+)-(\d+)((?:\.[a-z])*)>>")


@dataclasses.dataclass(frozen=True)
class Mark:
    """Which run it is."""

    kind: str
    """What it does; a name in `scripts.SCRIPTS`."""
    number: int
    """Which client's, from 0."""
    path: str = ""
    """Of a child run, its place below: a letter a level, each after a full stop."""

    def __str__(self) -> str:
        return f"<<chaos-{self.kind}-{self.number}{self.path}>>"

    @classmethod
    def first_in(cls, text: str) -> Self:
        """Return the first mark in a text: whose it is."""
        found = _FORM.search(text)
        assert found is not None, text[:2000]
        return cls(found.group(1), int(found.group(2)), found.group(3))

    @property
    def question(self) -> str:
        """What the run is asked."""
        return f"What is there to say about {self}?"

    @property
    def root(self) -> Mark:
        """The run at the root of its tree."""
        return Mark(self.kind, self.number)

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return self.path.count(".")

    def children(self, letters: str) -> list[Mark]:
        """Return its child runs, one a letter."""
        return [Mark(self.kind, self.number, f"{self.path}.{letter}") for letter in letters]

    def prompts(self, count: int) -> list[str]:
        """Return prompts that no other run has."""
        return [f"sub {self} {number}" for number in range(count)]

"""Which of several equal deployments is asked: the better of two drawn by weight, by how busy and
how slow each is at present.

Drawing two keeps calls from all going to the one that looked best a moment ago.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_NEWEST_SHARE = 0.2
_LATENCY_S_MIN = 0.001
"""What one that has never answered is taken for, so that it gets its chance."""


class Load:
    """What one deployment is doing, and how long it took lately."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Exchanges under way."""
        self._latency_s = 0.0

    def begin(self) -> None:
        """Note that an exchange has begun."""
        self.in_flight += 1

    def end(self, elapsed_s: float, *, is_good: bool) -> None:
        """Note that an exchange has ended; how long failures take says nothing."""
        self.in_flight -= 1
        if is_good:
            newest = elapsed_s - self._latency_s if self._latency_s else elapsed_s / _NEWEST_SHARE
            self._latency_s += _NEWEST_SHARE * newest

    @property
    def expected_s(self) -> float:
        """How long one more exchange may take to be served."""
        return (self.in_flight + 1) * max(self._latency_s, _LATENCY_S_MIN)


class Balanced(Protocol):
    """What can be chosen among."""

    @property
    def weight(self) -> int:
        """Share of the calls it is to get."""

    @property
    def load(self) -> Load:
        """What it is doing."""


Choice = TypeVar("Choice", bound=Balanced)


def ordered(
    steps: Sequence[Sequence[Choice]], draw: Callable[[], float] = random.random
) -> list[Choice]:
    """Return everything in the order in which it is to be asked.

    Steps keep their order; within one, each place goes to the better of two that are drawn by
    weight. `draw` gives numbers from 0 up to 1.
    """
    order: list[Choice] = []
    for step in steps:
        left = list(step)
        while len(left) > 1:
            first = _drawn(left, draw)
            second = _drawn([other for other in left if other is not first], draw)
            # At a tie the draw decides, so that weights count among the idle.
            better = second if second.load.expected_s < first.load.expected_s else first
            order.append(better)
            left = [other for other in left if other is not better]
        order += left
    return order


def _drawn(choices: Sequence[Choice], draw: Callable[[], float]) -> Choice:
    point = draw() * sum(choice.weight for choice in choices)
    for choice in choices:
        point -= choice.weight
        if point < 0:
            return choice
    return choices[-1]

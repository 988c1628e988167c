"""Which of several equal deployments is asked: the better of two drawn by weight, by how busy and
how slow each is at present.

Drawing two keeps calls from all going to the one that looked best a moment ago.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_NEWEST_SHARE = 0.2
_LATENCIES_KEPT = 100
_LATENCIES_MIN = 20
_USUAL_SHARE = 0.95
_CLEARLY = 1.5
"""So many times as long is worse; less is chance, and the weights decide."""
_PASSED_SHARE = 0.99
"""What is left of a bad memory each time that somebody else is asked because of it."""
_LATENCY_S_MIN = 0.05
"""What all are taken for that are faster, since models take seconds, and one that has never
answered, so that it gets its chance."""


class Load:
    """What one deployment is doing, and how long it took lately."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Exchanges under way."""
        self._latency_s = 0.0
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def begin(self) -> None:
        """Note that an exchange has begun."""
        self.in_flight += 1

    def end(self, elapsed_s: float, *, is_good: bool) -> None:
        """Note that an exchange has ended; how long failures take says nothing."""
        self.in_flight -= 1
        if is_good:
            newest = elapsed_s - self._latency_s if self._latency_s else elapsed_s / _NEWEST_SHARE
            self._latency_s += _NEWEST_SHARE * newest
            self._latencies_s.append(elapsed_s)

    @property
    def slow_s(self) -> float | None:
        """The time in which 95 of 100 answers came lately; None where too few are known."""
        if len(self._latencies_s) < _LATENCIES_MIN:
            return None
        return sorted(self._latencies_s)[int(len(self._latencies_s) * _USUAL_SHARE)]

    def pass_over(self) -> None:
        """Note that another was asked instead: one that was slow once gets its chance again."""
        self._latency_s *= _PASSED_SHARE

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
            # Among the about equal the draw decides, so that weights count among the idle.
            better = first
            if second.load.expected_s * _CLEARLY < first.load.expected_s:
                better = second
                first.load.pass_over()
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

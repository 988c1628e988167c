"""What a benchmark reports, and how it is printed."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Self

SAMPLES_MIN = 5
Figure = tuple[str, list[float]]
"""A name and its samples, which a goal makes a measurement of."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a figure is held to."""

    value: float | None
    """The most that meets it, or the least where `is_floor`; None for a figure that is told and
    held to nothing."""
    unit: str
    """Unit of the value, and of samples."""
    is_floor: bool = False
    """Whether more is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure: the median of at least five samples, beside the goal that it is held to."""

    bench: str
    """The benchmark's name."""
    name: str
    """The figure's name; its unit is its last part."""
    value: float
    """Median of the samples."""
    n: int
    """Samples."""
    goal: Goal
    """What the value is held to."""
    low: float
    """The smallest sample."""
    high: float
    """The largest sample."""
    p95: float
    """95 of 100 samples are at least as good; the worst one where there are fewer than 20."""
    p99: float
    """99 of 100 samples are at least as good; the worst one where there are fewer than 100."""

    @property
    def met(self) -> bool:
        """True where the median meets the goal."""
        goal = self.goal
        if goal.value is None:
            return True
        return self.value >= goal.value if goal.is_floor else self.value <= goal.value

    @classmethod
    def of(cls, bench: str, name: str, samples: Sequence[float], goal: Goal) -> Self:
        """Make a measurement of samples; ValueError for fewer than five."""
        if len(samples) < SAMPLES_MIN:
            raise ValueError(f"{name}: {len(samples)} samples are fewer than {SAMPLES_MIN}")
        return cls(
            bench=bench,
            name=name,
            value=statistics.median(samples),
            n=len(samples),
            goal=goal,
            low=min(samples),
            high=max(samples),
            p95=_percentile(samples, 95, goal),
            p99=_percentile(samples, 99, goal),
        )

    @classmethod
    def counted(cls, bench: str, name: str, value: float, n: int, goal: Goal) -> Self:
        """Make a measurement of something that was counted, or met once, over `n` things."""
        every = dict.fromkeys(("value", "low", "high", "p95", "p99"), value)
        return cls(bench=bench, name=name, n=n, goal=goal, **every)


def print_json(measurement: Measurement) -> None:
    """Print one JSON object on a line."""
    shown = {
        "bench": measurement.bench,
        "name": measurement.name,
        "value": round(measurement.value, 6),
        "unit": measurement.goal.unit,
        "n": measurement.n,
        "goal": measurement.goal.value,
        "met": measurement.met,
        "p50": round(measurement.value, 6),
        "p95": round(measurement.p95, 6),
        "p99": round(measurement.p99, 6),
    }
    print(json.dumps(shown), flush=True)


def print_head() -> None:
    """Print the head of a table for people."""
    print(
        f"{'figure':<32} {'p50':>9} {'p95':>9} {'p99':>9} {'goal':>9} {'unit':<5} {'n':>4}"
        f"  {'spread':<22} met",
        flush=True,
    )


def print_row(measurement: Measurement) -> None:
    """Print a row of the table."""
    m, goal = measurement, measurement.goal
    bound = "" if goal.value is None else f"{'>=' if goal.is_floor else '<='} {goal.value:g}"
    spread = f"{m.low:.4g} to {m.high:.4g}"
    print(
        f"{m.name:<32} {m.value:>9.4g} {m.p95:>9.4g} {m.p99:>9.4g} {bound:>9} {goal.unit:<5}"
        f" {m.n:>4}  {spread:<22} {'yes' if m.met else 'no'}",
        flush=True,
    )


def _percentile(samples: Sequence[float], percent: int, goal: Goal) -> float:
    """Return the best sample that `percent` of all samples are at least as good as."""
    from_best = sorted(samples, reverse=goal.is_floor)
    return from_best[math.ceil(len(samples) * percent / 100) - 1]

"""What a benchmark reports, and how it is printed."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Self

SAMPLES_MIN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure: the median of at least five samples, beside the goal that it is held to."""

    bench: str
    """The benchmark's name."""
    name: str
    """The figure's name; its unit is its last part."""
    value: float
    """Median of the samples."""
    unit: str
    """Unit of value and goal."""
    n: int
    """Samples."""
    goal: float
    """The most that meets the goal."""
    low: float
    """The smallest sample."""
    high: float
    """The largest sample."""

    @property
    def met(self) -> bool:
        """True where the median is at most the goal."""
        return self.value <= self.goal

    @classmethod
    def of(cls, bench: str, name: str, samples: Sequence[float], *, unit: str, goal: float) -> Self:
        """Make a measurement of samples; ValueError for fewer than five."""
        if len(samples) < SAMPLES_MIN:
            raise ValueError(f"{name}: {len(samples)} samples are fewer than {SAMPLES_MIN}")
        return cls(
            bench=bench,
            name=name,
            value=statistics.median(samples),
            unit=unit,
            n=len(samples),
            goal=goal,
            low=min(samples),
            high=max(samples),
        )


def print_json(measurement: Measurement) -> None:
    """Print one JSON object on a line."""
    shown = {
        "bench": measurement.bench,
        "name": measurement.name,
        "value": round(measurement.value, 6),
        "unit": measurement.unit,
        "n": measurement.n,
        "goal": measurement.goal,
        "met": measurement.met,
    }
    print(json.dumps(shown), flush=True)


def print_table(measurements: Iterable[Measurement]) -> None:
    """Print a table for people."""
    print(f"{'figure':<28} {'median':>10} {'goal':>8} {'unit':<5} {'n':>4}  {'spread':<22} met")
    for m in measurements:
        spread = f"{m.low:.4g} to {m.high:.4g}"
        met = "yes" if m.met else "no"
        print(
            f"{m.name:<28} {m.value:>10.4g} {m.goal:>8g} {m.unit:<5} {m.n:>4}  {spread:<22} {met}"
        )
    sys.stdout.flush()

"""What benchmarks report."""

from __future__ import annotations

import json

import pytest

from bench.measurement import Goal, Measurement, print_json


def measured(samples: list[float], goal: float, *, is_floor: bool = False) -> Measurement:
    return Measurement.of("path", "cell_ms", samples, Goal(goal, "ms", is_floor))


def test_the_value_is_the_median_and_not_the_mean() -> None:
    """One slow sample on a shared machine must not move the figure."""
    assert measured([1, 2, 3, 4, 1000], goal=1).value == 3


def test_fewer_than_five_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 5"):
        measured([1, 2, 3, 4], goal=1)


@pytest.mark.parametrize(("goal", "met"), [(3.0, True), (2.9, False)])
def test_a_goal_is_met_up_to_and_with_its_value(goal: float, met: bool) -> None:
    assert measured([3, 3, 3, 3, 3], goal=goal).met is met


@pytest.mark.parametrize(("goal", "met"), [(3.0, True), (3.1, False)])
def test_a_floor_is_met_from_its_value_on(goal: float, met: bool) -> None:
    """Of throughput and speedup, more is better."""
    assert measured([3, 3, 3, 3, 3], goal=goal, is_floor=True).met is met


@pytest.mark.parametrize(("n", "p95", "p99"), [(100, 95, 99), (101, 96, 100), (5, 5, 5)])
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(
    n: int, p95: float, p99: float
) -> None:
    """Few samples say nothing about a tail: their worst stands for it."""
    found = measured([float(i) for i in range(n, 0, -1)], goal=1)

    assert (found.p95, found.p99) == (p95, p99)


def test_the_tail_of_a_figure_with_a_floor_is_at_its_low_end() -> None:
    """Nobody is troubled by a search that was fast."""
    found = measured([float(i) for i in range(1, 101)], goal=1, is_floor=True)

    assert (found.p95, found.p99) == (6, 2)


def test_a_json_line_has_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(measured([1, 2, 3, 4, 5], goal=3))

    assert json.loads(capsys.readouterr().out) == {
        "bench": "path", "name": "cell_ms", "value": 3, "unit": "ms", "n": 5, "goal": 3,
        "met": True, "p50": 3, "p95": 5, "p99": 5,
    }  # fmt: skip

"""What benchmarks report."""

from __future__ import annotations

import json

import pytest

from bench.measurement import Measurement, print_json


def measured(samples: list[float], goal: float) -> Measurement:
    return Measurement.of("path", "cell_ms", samples, unit="ms", goal=goal)


def test_the_value_is_the_median_and_not_the_mean() -> None:
    """One slow sample on a shared machine must not move the figure."""
    assert measured([1, 2, 3, 4, 1000], goal=1).value == 3


def test_fewer_than_five_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 5"):
        measured([1, 2, 3, 4], goal=1)


@pytest.mark.parametrize(("goal", "met"), [(3.0, True), (2.9, False)])
def test_a_goal_is_met_up_to_and_with_its_value(goal: float, met: bool) -> None:
    assert measured([3, 3, 3, 3, 3], goal=goal).met is met


def test_a_json_line_has_the_agreed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(measured([1, 2, 3, 4, 5], goal=3))

    assert json.loads(capsys.readouterr().out) == {
        "bench": "path", "name": "cell_ms", "value": 3, "unit": "ms", "n": 5, "goal": 3,
        "met": True,
    }  # fmt: skip

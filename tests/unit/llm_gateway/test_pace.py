"""How much a deployment is given in a minute."""

from __future__ import annotations

import random

import pytest

from llm_gateway.pace import Pace


def begun(pace: Pace, arrivals: list[float], tokens: int = 0) -> list[float]:
    """Return when each of several requests begins that wait as they are told."""
    times = []
    for arrival in arrivals:
        begins = arrival + pace.wait_s(tokens, arrival)
        pace.begin(tokens, begins)
        times.append(begins)
    return times


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
def test_no_minute_has_more_requests_than_it_may(per_minute: int) -> None:
    """Whatever the arrivals: all at once, in bursts, or a little too fast for hours."""
    source = random.Random(per_minute)
    for spread_s in (0.0, 30.0, 600.0):
        arrivals = sorted(source.uniform(0, spread_s) for _ in range(3 * per_minute + 20))
        times = begun(Pace(per_minute, 0), arrivals)

        for first in times:
            within = [time for time in times if first <= time < first + 60 - 1e-6]
            assert len(within) <= per_minute


def test_a_tenth_of_a_minute_may_come_at_once() -> None:
    """A run's sub-calls come together; spreading them without need would only be slower."""
    times = begun(Pace(60, 0), [0.0] * 8)

    assert times[:6] == [0] * 6
    assert times[6] > 0


def test_without_limits_nobody_waits() -> None:
    assert begun(Pace(0, 0), [0.0] * 1000, tokens=10**9) == [0.0] * 1000


def test_tokens_that_a_request_took_hold_up_the_next() -> None:
    """Its output is known only when it has ended."""
    pace = Pace(0, 6600)
    pace.begin(100, 0.0)
    assert pace.wait_s(0, 0.0) == 0.0

    pace.correct(900, 0.5)

    assert pace.wait_s(0, 0.5) == pytest.approx(10.0 - 6.0 - 0.5)


def test_tokens_that_were_thought_and_not_taken_come_back() -> None:
    """A request that was refused took none."""
    pace = Pace(0, 6600)
    pace.begin(1000, 0.0)
    assert pace.wait_s(0, 0.0) == pytest.approx(4.0)

    pace.correct(-1000, 0.0)

    assert pace.wait_s(0, 0.0) == 0.0


@pytest.mark.parametrize("largest", [50, 700, 5_000])
def test_no_minute_has_more_tokens_than_it_may(largest: int) -> None:
    """A large request is no exception: it waits for silence enough before it."""
    source, pace = random.Random(largest), Pace(0, 6_000)
    begun_at: list[tuple[float, int]] = []
    for arrival in sorted(source.uniform(0, 300.0) for _ in range(40_000 // largest)):
        tokens = source.randint(1, largest)
        begins = arrival + pace.wait_s(tokens, arrival)
        pace.begin(tokens, begins)
        begun_at.append((begins, tokens))

    for first, _ in begun_at:
        within = [taken for time, taken in begun_at if first <= time < first + 60 - 1e-6]
        assert sum(within) <= 6_000


def test_a_request_of_more_than_a_minutes_tokens_has_a_minute_to_itself() -> None:
    """It would never fit; whether it is too much is for the provider to say."""
    pace = Pace(0, 6_000)
    assert pace.wait_s(50_000, 0.0) == 0.0
    pace.begin(10, 0.0)

    assert pace.wait_s(50_000, 0.0) == pytest.approx(60.0, abs=0.2)

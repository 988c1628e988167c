"""When a deployment is left alone, and how it comes back."""

from __future__ import annotations

import pytest

from llm_gateway.breaker import CircuitBreaker


def opened(now: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(5):
        breaker.note_failure(now)
    assert breaker.is_open
    return breaker


def test_it_opens_after_five_failures_in_a_row() -> None:
    """Four may be chance; a success in between starts the count anew."""
    breaker = CircuitBreaker()

    assert [breaker.note_failure(float(i)) for i in range(4)] == [False] * 4
    breaker.note_success(4.0)
    assert [breaker.note_failure(5.0 + i) for i in range(5)] == [False] * 4 + [True]
    assert not breaker.admits(9.0)


@pytest.mark.parametrize(("failures_in_ten", "is_open"), [(4, False), (5, True)])
def test_it_opens_when_half_of_the_calls_fail(failures_in_ten: int, is_open: bool) -> None:
    """A provider that answers every other call never fails five times in a row."""
    breaker = CircuitBreaker()
    # Successes first: no more than five failures in a row may come at the end of six.
    for now in range(10 - failures_in_ten):
        breaker.note_success(float(now))
        if now < failures_in_ten - 1:
            breaker.note_failure(float(now))
    breaker.note_failure(10.0)

    assert breaker.is_open is is_open


def test_failures_of_long_ago_are_forgotten() -> None:
    """What happened before the last half minute was another day's trouble."""
    breaker = CircuitBreaker()
    for i in range(9):
        (breaker.note_failure if i % 2 else breaker.note_success)(float(i))

    assert not breaker.note_failure(100.0)


def test_after_its_time_one_call_at_a_time_is_let_through() -> None:
    """All callers at once would finish off a provider that has just come back."""
    breaker = opened(100.0)

    assert breaker.wait_s(100.0) == 5.0
    assert not breaker.admits(104.9)
    assert breaker.admits(105.0)
    assert not breaker.admits(105.0)
    assert breaker.admits(106.0)


def test_a_good_probe_closes_it() -> None:
    """One answer is enough: the next failures count from nothing."""
    breaker = opened(100.0)
    breaker.admits(105.0)

    assert breaker.note_success(105.2)
    assert breaker.admits(105.3)
    assert breaker.admits(105.3)
    assert not breaker.note_failure(105.4)


def test_a_bad_probe_keeps_it_open_twice_as_long_up_to_a_minute() -> None:
    """A provider that stays down is asked less and less often, and never forgotten."""
    breaker, now = opened(0.0), 0.0
    waits = []
    for _ in range(6):
        now += breaker.wait_s(now)
        assert breaker.admits(now)
        assert breaker.note_failure(now + 0.1)
        now += 0.1
        waits.append(breaker.wait_s(now))

    assert waits == pytest.approx([10, 20, 40, 60, 60, 60])


def test_calls_that_were_under_way_when_it_opened_change_nothing() -> None:
    """A hundred calls that fail together are one outage, not a hundred."""
    breaker = opened(100.0)

    assert not breaker.note_failure(100.1)
    assert breaker.wait_s(100.1) == pytest.approx(4.9)

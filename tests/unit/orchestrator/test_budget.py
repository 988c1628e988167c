"""What a run may still spend, on either side of each limit."""

from __future__ import annotations

import dataclasses

import pytest
from fathom.gateway.v1.generation_pb2 import Usage

from orchestrator.runs.budget import Allowance, Budget, LimitReachedError
from orchestrator.runs.limits import RunLimits

LIMITS = RunLimits(
    turns_max=3, time_max_s=100.0, sub_calls_max=10, tokens_max=1_000, cost_usd_nanos_max=1_000
)
NOTHING = Allowance(0, 0)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def budget(
    clock: Clock | None = None, *, last_call: Allowance = NOTHING, **limits: float
) -> Budget:
    return Budget(
        dataclasses.replace(LIMITS, **limits),  # type: ignore[arg-type]
        last_call=last_call,
        clock=clock or Clock(),
    )


def limit_of(made: Budget) -> str:
    limit = made.exhausted()
    return "" if limit is None else limit.limit


def test_the_last_permitted_turn_begins_and_the_next_does_not() -> None:
    made = budget()

    for turn in (1, 2, 3):
        assert made.exhausted() is None
        assert made.count_turn() == turn

    limit = made.exhausted()
    assert limit is not None
    assert (limit.limit, limit.value, limit.spent) == ("turns_max", 3, 3)


def test_time_for_work_ends_a_tenth_before_the_limit() -> None:
    """The rest is for the last answer."""
    clock = Clock()
    made = budget(clock)

    clock.now_s = 89.9
    assert limit_of(made) == ""
    clock.now_s = 90.0
    assert limit_of(made) == "time_max"
    assert made.left_s == 10.0


def test_the_reserve_of_time_is_never_more_than_half_a_minute() -> None:
    clock = Clock()
    made = budget(clock, time_max_s=3_600.0)

    clock.now_s = 3_569.0

    assert made.work_left_s == 1.0


def test_the_last_answer_may_use_the_time_that_was_kept_back() -> None:
    """It may have to read a variable, which takes a cell."""
    clock = Clock()
    made = budget(clock)
    clock.now_s = 95.0

    assert made.work_left_s == 0.0
    made.open_reserve()
    assert made.work_left_s == 5.0


def test_time_left_is_never_negative() -> None:
    clock = Clock()
    made = budget(clock)

    clock.now_s = 1_000.0

    assert (made.left_s, made.work_left_s) == (0.0, 0.0)


def test_tokens_stop_the_work_at_the_limit_without_the_reserve() -> None:
    made = budget()

    made.add(Usage(input_tokens=800, output_tokens=99))
    assert limit_of(made) == ""
    made.add(Usage(output_tokens=1))
    assert limit_of(made) == "tokens_max"


def test_money_stops_the_work_at_the_limit_without_the_reserve() -> None:
    made = budget()

    made.add(Usage(cost_usd_nanos=899))
    assert limit_of(made) == ""
    made.add(Usage(cost_usd_nanos=1))
    assert limit_of(made) == "cost_usd_nanos_max"


def test_more_than_the_work_may_spend_is_noticed() -> None:
    tokens, money = budget(), budget()

    tokens.add(Usage(input_tokens=900))
    tokens.check_overspent()
    tokens.add(Usage(input_tokens=1))
    with pytest.raises(LimitReachedError, match="tokens_max"):
        tokens.check_overspent()
    money.add(Usage(cost_usd_nanos=900))
    money.check_overspent()
    money.add(Usage(cost_usd_nanos=1))
    with pytest.raises(LimitReachedError, match="cost_usd_nanos_max"):
        money.check_overspent()


def test_no_money_permits_free_models() -> None:
    """A limit of 0 is a real value: nothing may be paid, and work goes on."""
    made = budget(cost_usd_nanos_max=0)

    assert limit_of(made) == ""
    assert made.work_allowance().cost_usd_nanos_max == 0


def test_what_a_last_call_takes_is_kept_back_up_to_half() -> None:
    """A tenth where that is more; never so much that no work could be done."""
    kept = budget(last_call=Allowance(300, 400)).work_allowance()
    most = budget(last_call=Allowance(5_000, 5_000)).work_allowance()

    assert kept == Allowance(700, 600)
    assert most == Allowance(500, 500)
    assert budget(last_call=Allowance(5_000, 5_000)).whole_allowance() == Allowance(1_000, 1_000)


def test_usage_is_summed_field_by_field() -> None:
    made = budget()
    one = Usage(
        input_tokens=1,
        output_tokens=2,
        cached_input_tokens=3,
        reasoning_tokens=4,
        cost_usd_nanos=5,
        calls=6,
    )

    made.add(one)
    made.add(Usage(estimated=True))
    made.add(one)

    assert made.usage == Usage(
        input_tokens=2,
        output_tokens=4,
        cached_input_tokens=6,
        reasoning_tokens=8,
        cost_usd_nanos=10,
        calls=12,
        estimated=True,
    )


def test_a_limit_tells_what_was_spent_of_it() -> None:
    made = budget()
    made.sub_calls = 7
    made.add(Usage(input_tokens=30, output_tokens=4, cost_usd_nanos=5))

    told = {
        limit: (made.reached(limit).value, made.reached(limit).spent)
        for limit in ("sub_calls_max", "tokens_max", "cost_usd_nanos_max", "time_max")
    }

    assert told == {
        "sub_calls_max": (10, 7),
        "tokens_max": (1_000, 34),
        "cost_usd_nanos_max": (1_000, 5),
        "time_max": (100, 0),
    }

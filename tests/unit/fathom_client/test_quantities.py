"""Amounts as people type them, and the limits made of them."""

from __future__ import annotations

from decimal import Decimal

import click
import pytest
from fathom_client.command.quantities import CountType, DurationType, UsdType
from fathom_client.limits import Limits


@pytest.mark.parametrize(
    ("text", "usd"),
    [("5", "5"), ("$5", "5"), ("$0.25", "0.25"), ("0", "0"), ("0.000000001", "1e-9")],
)
def test_money_is_read_with_and_without_its_sign(text: str, usd: str) -> None:
    assert UsdType().convert(text, None, None) == Decimal(usd)


@pytest.mark.parametrize("text", ["", "-1", "five", "1e3", "$", "0.0000000001"])
def test_what_is_no_money_is_refused(text: str) -> None:
    """Below a billionth of a dollar there is no unit to say it in."""
    with pytest.raises(click.BadParameter):
        UsdType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5m", 90), ("0.5s", 0.5)],
)
def test_times_are_read_in_their_units(text: str, seconds: float) -> None:
    assert DurationType().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "10x", "m", "10m5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DurationType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("200", 200), ("1.5k", 1500), ("2M", 2_000_000)]
)
def test_counts_are_read_with_units(text: str, count: int) -> None:
    assert CountType().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "1.0005k"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        CountType().convert(text, None, None)


def test_a_count_below_the_least_is_refused() -> None:
    """A run of no turns cannot be asked for; one turn can."""
    assert CountType(least=1).convert("1", None, None) == 1
    with pytest.raises(click.BadParameter):
        CountType(least=1).convert("0", None, None)


def test_limits_are_sent_in_the_units_of_the_wire() -> None:
    wire = Limits(usd=Decimal("0.1"), time_s=1.5, turns=3, sub_calls=0).to_wire()

    assert wire.cost_usd_nanos_max == 100_000_000
    assert wire.time_max.ToMilliseconds() == 1500
    assert wire.turns_max == 3
    assert wire.sub_calls_max == 0


def test_a_limit_of_zero_is_sent_and_an_unset_one_is_not() -> None:
    """Zero dollars permits free models only; no value leaves it to the server."""
    wire = Limits(usd=0).to_wire()

    assert wire.HasField("cost_usd_nanos_max")
    assert not wire.HasField("tokens_max")
    assert not wire.HasField("time_max")


def test_limits_are_completed_one_by_one() -> None:
    """Zero is a limit, and no other stands in for it."""
    asked = Limits(usd=0, turns=3)

    assert asked.or_else(Limits(usd=5, time_s=600)) == Limits(usd=0, turns=3, time_s=600)


def test_the_trust_line_tells_the_limits_that_are_set() -> None:
    assert Limits(usd=5, turns=20, time_s=600).describe() == "$5, 20 turns, 10 min"
    assert Limits(tokens=2_000_000, depth=0).describe() == "2M tokens, depth 0"

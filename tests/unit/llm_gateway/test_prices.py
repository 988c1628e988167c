"""Prices in integers."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.answers import Tokens
from llm_gateway.prices import (
    FREE,
    Price,
    Rates,
    UnknownPriceError,
    price_from_table,
    usd_nanos_per_million,
)

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
BANDED = Price(
    (
        Rates(input=1_250_000_000, output=10_000_000_000, cached_input=125_000_000),
        Rates(
            above_input_tokens=200_000,
            input=2_500_000_000,
            output=15_000_000_000,
            cached_input=250_000_000,
        ),
    )
)
counts = st.integers(min_value=0, max_value=500_000)


def test_a_cost_is_rounded_up_to_a_whole_billionth() -> None:
    """Thousands of tiny calls must not come out as free."""
    price = Price((Rates(input=1, output=0, cached_input=0),))

    assert price.cost_usd_nanos(Tokens(input=1, output=0)) == 1


def test_cached_input_has_its_own_price() -> None:
    tokens = Tokens(input=1_000_000, output=0, cached_input=400_000)
    price = Price((Rates(input=10, output=0, cached_input=1),))

    assert price.cost_usd_nanos(tokens) == 6 + 1  # 6.4 rounded up


@pytest.mark.parametrize(
    ("input_tokens", "nanos"), [(200_000, 250_000_000), (200_001, 500_002_500)]
)
def test_a_band_begins_above_its_size(input_tokens: int, nanos: int) -> None:
    """Providers charge the whole prompt at the higher rate once it is over the size."""
    assert BANDED.cost_usd_nanos(Tokens(input=input_tokens, output=0)) == nanos


@given(sent=counts, received=counts, sent_less=counts, received_less=counts, cached=counts)
def test_no_usage_within_the_bound_costs_more_than_the_bound(
    sent: int, received: int, sent_less: int, received_less: int, cached: int
) -> None:
    """A reservation made by the bound always covers the settlement."""
    used = Tokens(
        input=min(sent, sent_less), output=min(received, received_less), cached_input=cached
    )

    assert BANDED.cost_usd_nanos(used) <= BANDED.cost_usd_nanos_bound(sent, received)


@given(sent=counts, money=st.integers(min_value=0, max_value=10**10))
def test_the_output_that_money_pays_is_exactly_the_largest(sent: int, money: int) -> None:
    output = BANDED.output_tokens_within(sent, money)

    assert output is not None
    if output >= 0:
        assert BANDED.cost_usd_nanos_bound(sent, output) <= money
    assert BANDED.cost_usd_nanos_bound(sent, output + 1) > money


def test_free_output_is_unbounded() -> None:
    """A run with no money at all may still use a free model."""
    assert FREE.output_tokens_within(1_000_000, 0) is None


@pytest.mark.parametrize(
    ("usd", "nanos"), [("0.05", 50_000_000), ("2", 2_000_000_000), ("0.0000000001", 1)]
)
def test_dollars_become_billionths_rounded_up(usd: str, nanos: int) -> None:
    assert usd_nanos_per_million(Decimal(usd)) == nanos


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-5-mini", "https://api.openai.com/v1"),
        ("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai"),
        ("gpt-4o", "http://127.0.0.1:8000/v1"),
    ],
)
@pytest.mark.parametrize("sent", [1_000, 200_000, 200_001, 300_000])
def test_the_compiled_table_agrees_with_the_library(model: str, base_url: str, sent: int) -> None:
    """The library is the judge of its own table, tiers by size included."""
    price, _ = price_from_table(model, base_url, NOW)
    usage = Usage(input_tokens=sent, cache_read_tokens=sent // 2, output_tokens=777)
    expected = calc_price(usage, model, genai_request_timestamp=NOW).total_price

    ours = price.cost_usd_nanos(Tokens(input=sent, output=777, cached_input=sent // 2))

    assert 0 <= ours - expected * 1_000_000_000 < 1


def test_a_model_that_the_table_lacks_has_no_price() -> None:
    with pytest.raises(UnknownPriceError):
        price_from_table("no-such-model-anywhere", "http://127.0.0.1/v1", NOW)


def test_the_table_knows_the_window_of_some_models() -> None:
    assert price_from_table("gpt-5-mini", "https://api.openai.com/v1", NOW)[1] == 400_000

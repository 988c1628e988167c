"""Figures as people read them."""

from __future__ import annotations

import pytest
from fathom_client.figures import (
    bytes_text,
    clock_text,
    count_text,
    plural,
    span_text,
    usd_text,
)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (5_000_000_000, "$5"),
        (310_000_000, "$0.31"),
        (10_000_000, "$0.01"),
        (9_900_000, "$0.0099"),
        (412_345, "$0.00041"),
        (42, "$0.000000042"),
        (1_234_560_000_000, "$1,234.56"),
    ],
)
def test_money_keeps_the_digits_that_count(nanos: int, text: str) -> None:
    """A run over a small model costs far less than a cent, and that is not nothing."""
    assert usd_text(nanos) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (41_200_000, "41.2 MB"), (999_960, "1.0 MB")],
)
def test_sizes_are_decimal(size_bytes: int, text: str) -> None:
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (1_400_000, "1.4M")]
)
def test_counts_are_short(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("elapsed_s", "text"), [(-1, "0:00"), (42.9, "0:42"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_a_running_time_looks_like_a_clock(elapsed_s: float, text: str) -> None:
    assert clock_text(elapsed_s) == text


@pytest.mark.parametrize(
    ("span_s", "text"),
    [
        (0.04, "40 ms"),
        (3.21, "3.2 s"),
        (30, "30 s"),
        (600, "10 min"),
        (5400, "1 h 30 min"),
        (48 * 3600 - 1, "47 h 59 min 59 s"),
        (48 * 3600, "2 days"),
        (7 * 86_400 - 1, "7 days"),
    ],
)
def test_a_span_is_in_words(span_s: float, text: str) -> None:
    assert span_text(span_s) == text


def test_one_thing_has_no_plural() -> None:
    assert (plural(1, "file"), plural(1204, "file")) == ("1 file", "1,204 files")

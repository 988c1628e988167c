"""Defaults of limits: how they grow with the context, and what they never exceed."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.runs.default_limits import DefaultLimits
from orchestrator.runs.limits import RunLimits

BASE = RunLimits(
    turns_max=20,
    time_max_s=600.0,
    sub_calls_max=1_000,
    tokens_max=20_000_000,
    cost_usd_nanos_max=5_000_000_000,
)
CEILINGS = dataclasses.replace(
    BASE,
    time_max_s=86_400.0,
    sub_calls_max=100_000,
    tokens_max=2_000_000_000,
    cost_usd_nanos_max=1_000_000_000_000,
)
DEFAULTS = DefaultLimits(base=BASE, ceilings=CEILINGS, growth_max=10.0)


@pytest.mark.parametrize("size_bytes", [0, 1_000, 20_000_000])
def test_an_ordinary_context_has_the_configured_defaults(size_bytes: int) -> None:
    assert DEFAULTS.for_context(size_bytes=size_bytes, documents=1) == BASE


def test_defaults_grow_in_proportion_to_the_context() -> None:
    """What reads 40 MB takes twice what reads 20 MB."""
    limits = DEFAULTS.for_context(size_bytes=40_000_000, documents=1)

    assert limits == dataclasses.replace(
        BASE,
        time_max_s=1_200.0,
        sub_calls_max=2_000,
        tokens_max=40_000_000,
        cost_usd_nanos_max=10_000_000_000,
    )


def test_they_grow_to_the_configured_multiple() -> None:
    """Nobody who forgets a limit pays a hundred times the default."""
    limits = DEFAULTS.for_context(size_bytes=100 << 30, documents=1)

    assert limits.cost_usd_nanos_max == 10 * BASE.cost_usd_nanos_max
    assert limits.turns_max == BASE.turns_max


def test_they_stay_under_the_ceilings() -> None:
    tight = DefaultLimits(base=BASE, ceilings=BASE, growth_max=10.0)

    assert tight.for_context(size_bytes=100 << 30, documents=100_000) == BASE


@pytest.mark.parametrize(
    ("documents", "sub_calls"), [(500, 1_000), (501, 1_002), (5_000, 10_000), (5_001, 10_000)]
)
def test_each_document_can_be_asked_about_twice(documents: int, sub_calls: int) -> None:
    limits = DEFAULTS.for_context(size_bytes=1_000, documents=documents)

    assert limits.sub_calls_max == sub_calls
    assert limits.cost_usd_nanos_max == BASE.cost_usd_nanos_max

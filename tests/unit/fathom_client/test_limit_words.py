"""A limit is told by the option that sets it, in the units it was typed in."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1 import run_event_pb2, run_pb2
from fathom_client.command.limit_words import option_of, reached_text

REACHED = [
    ("turns_max", 20, 20, "limit reached: --max-turns (20 of 20)"),
    ("time_max", 600, 600, "limit reached: --max-time (10 min of 10 min)"),
    (
        "cost_usd_nanos_max",
        310_000_000,
        5_000_000_000,
        "limit reached: --max-usd ($0.31 of $5, and the next call might not fit)",
    ),
    (
        "tokens_max",
        1_300,
        12_000,
        "limit reached: --max-tokens (1.3k of 12k, and the next call might not fit)",
    ),
    (
        "context_tokens_max",
        9_000,
        8_000,
        "limit reached: the root model's window (9k of 8k)",
    ),
    ("of_a_later_version", 1, 1, "limit reached: of_a_later_version (1 of 1)"),
]


@pytest.mark.parametrize(("limit", "spent", "value", "text"), REACHED)
def test_what_stopped_a_run_is_told_in_the_words_of_the_command(
    limit: str, spent: int, value: int, text: str
) -> None:
    """A run stops before a call that might cross a limit, so less than all may be spent."""
    reached = run_event_pb2.LimitReached(limit=limit, spent=spent, value=value)

    assert reached_text(reached) == text


@pytest.mark.parametrize("limit", run_pb2.Limits.DESCRIPTOR.fields_by_name)
def test_every_limit_of_the_contract_has_an_option(limit: str) -> None:
    assert option_of(limit) is not None

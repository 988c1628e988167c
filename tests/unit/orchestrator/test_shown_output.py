"""What a model sees of long output, and what it is told about the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.sessions.shown_output import ShownOutput, shorten


def test_output_at_the_budget_is_shown_whole() -> None:
    assert shorten("a" * 100, characters_max=100) == ShownOutput("a" * 100, is_whole=True)


def test_output_over_the_budget_keeps_head_and_tail_and_counts_the_rest() -> None:
    """A needle printed last was lost where the head alone was kept."""
    shown = shorten("h" * 60 + "m" * 10_000 + "t" * 60, characters_max=100)

    assert shown.text.startswith("h" * 50 + "\n[")
    assert shown.text.endswith("]\n" + "t" * 50)
    assert "10,020 of 10,120 characters not shown" in shown.text
    assert not shown.is_whole


def test_bytes_that_the_sandbox_dropped_are_told() -> None:
    shown = shorten("abc", characters_max=100, bytes_dropped=1_234)

    assert shown.text.startswith("abc\n[")
    assert "1,234 more bytes" in shown.text
    assert not shown.is_whole


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_what_is_shown_and_what_is_not_add_up(output: str, characters_max: int) -> None:
    shown = shorten(output, characters_max=characters_max)

    if shown.is_whole:
        assert shown.text == output
        assert len(output) <= characters_max
    else:
        head = characters_max - characters_max // 2
        assert shown.text[:head] == output[:head]
        assert f"{len(output) - characters_max:,} of {len(output):,}" in shown.text

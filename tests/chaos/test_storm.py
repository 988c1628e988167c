"""A small storm; `python -m tests.chaos` raises larger ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import StormOptions, storm

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
SEED = 20


@pytest.mark.parametrize(("database", "kills"), [("postgresql", 10), ("sqlite", 5)])
async def test_kills_at_random_change_no_answer_lose_no_event_and_pay_nothing_twice(
    tmp_path: Path, database: str, kills: int
) -> None:
    """Any process can end at any moment: the machine's memory is short, or a machine is gone."""
    options = StormOptions(
        kills=kills, seed=SEED, database=database, concurrent=12, pause_s=(0.2, 1.5)
    )

    report = await storm(tmp_path, options)

    assert not report.faults
    assert report.figures["chaos_kills"] == kills
    assert report.runs >= options.concurrent

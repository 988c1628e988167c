"""A small storm; `python -m tests.chaos` raises larger ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.place import PlaceOptions
from tests.chaos.storm import StormOptions, storm

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
SEED = 20


@pytest.mark.parametrize(
    ("database", "kills", "freezes"), [("postgresql", 10, 2), ("sqlite", 4, 0)]
)
async def test_kills_at_random_change_no_answer_lose_no_event_and_pay_nothing_twice(
    tmp_path: Path, database: str, kills: int, freezes: int
) -> None:
    """Any process can end at any moment: the machine's memory is short, or a machine is gone. Or it
    stands still, and believes afterwards that nobody else has its runs."""
    place = PlaceOptions(database=database, has_valkey=database == "postgresql")
    options = StormOptions(
        kills=kills, freezes=freezes, seed=SEED, place=place, clients=10, pause_s=(0.1, 1.0)
    )

    report = await storm(tmp_path, options)

    assert not report.faults
    assert report.figures["chaos_kills"] == kills
    assert report.figures["chaos_freezes"] == freezes
    assert report.runs >= options.clients

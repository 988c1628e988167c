"""The orchestrator: what it adds to a run, a thousand runs at once, a context of 10 GB, and runs
that go on while processes are killed under them.

The model answers as written down beforehand, and takes the time that a figure says. A thousand
runs have a session of the sandbox each.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measurement import Goal, Measurement
from bench.orchestrator_runs import a_thousand, overhead
from bench.orchestrator_upload import upload
from tests.chaos.place import PlaceOptions
from tests.chaos.storm import StormOptions, storm

NAME = "orchestrator"
CHAOS_KILLS = 200
_CLIENTS = 50
_GOALS = {
    "overhead_ratio_20_turns": Goal(1.02, "ratio"),
    "event_to_watcher_p50_ms": Goal(20, "ms"),
    "upload_mb_per_s": Goal(200, "MB/s", is_floor=True),
}
_THOUSAND = 1_000


async def measure(chaos_kills: int = CHAOS_KILLS) -> AsyncIterator[Measurement]:
    """Yield each figure as soon as it is known; `chaos_kills` is how many processes are killed on
    PostgreSQL, and a quarter as many on SQLite."""
    async for name, samples in overhead():
        yield Measurement.of(NAME, name, samples, _GOALS[name])
    lost, peak_mb, took_s = await a_thousand()
    yield _counted("concurrent_1000_lost", lost, _THOUSAND, Goal(0, "runs"))
    yield _counted("concurrent_1000_peak_rss_mb", peak_mb, 1, Goal(None, "MB"))
    yield _counted("concurrent_1000_s", took_s, 1, Goal(None, "s"))
    rates, rss_mb = await upload()
    yield Measurement.of(NAME, "upload_mb_per_s", rates, _GOALS["upload_mb_per_s"])
    yield _counted("upload_rss_mb", rss_mb, 1, Goal(300, "MB"))
    for database, kills in (("postgresql", chaos_kills), ("sqlite", chaos_kills // 4)):
        async for measurement in _chaos(database, kills):
            yield measurement


async def _chaos(database: str, kills: int) -> AsyncIterator[Measurement]:
    seed, freezes = secrets.randbelow(1 << 32), kills // 5
    print(f"chaos on {database}: seed {seed}", file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix="fathom-chaos-") as folder:
        place = PlaceOptions(database=database, concurrent=2 * _CLIENTS)
        options = StormOptions(
            kills=kills, freezes=freezes, seed=seed, place=place, clients=_CLIENTS
        )
        report = await storm(Path(folder), options)
    for fault in report.faults:
        print(f"chaos on {database}: {fault}", file=sys.stderr, flush=True)
    suffix = "" if database == "postgresql" else f"_{database}"
    goals = {
        "chaos_kills": Goal(kills, "kills", is_floor=True),
        "chaos_freezes": Goal(freezes, "freezes", is_floor=True),
        "chaos_runs": Goal(None, "runs"),
    }
    for name, value in report.figures.items():
        goal = goals.get(name, Goal(0, "faults"))
        yield _counted(name + suffix, value, report.runs, goal)


def _counted(name: str, value: float, n: int, goal: Goal) -> Measurement:
    return Measurement.counted(NAME, name, value, n, goal)

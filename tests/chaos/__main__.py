"""Raise a storm: `python -m tests.chaos --kills 200`; ends with 1 where something does not hold.

Prints one JSON object with the figures and the seed, and what does not hold on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.place import PlaceOptions
from tests.chaos.storm import Report, StormOptions, storm

_FAULTS_SHOWN = 50


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--freezes", type=int, default=None, help="orchestrators that stand still; 1 for 5 kills"
    )
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--valkey", action="store_true", help="keep accounts in Valkey")
    parser.add_argument("--s3", action="store_true", help="keep objects in an S3-compatible server")
    parser.add_argument("--clients", type=int, default=50, help="each has a run or two at a time")
    parser.add_argument("--seed", type=int, default=None, help="repeats a schedule")
    parser.add_argument("--folder", type=Path, default=None, help="keep logs and databases here")
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    options = StormOptions(
        kills=given.kills,
        freezes=given.kills // 5 if given.freezes is None else given.freezes,
        seed=seed,
        clients=given.clients,
        place=PlaceOptions(
            database=given.database,
            has_valkey=given.valkey,
            has_s3=given.s3,
            concurrent=2 * given.clients,
        ),
        is_told=True,
    )
    report = asyncio.run(_blow(given.folder, options))
    for fault in report.faults[:_FAULTS_SHOWN]:
        print(fault, file=sys.stderr)
    facts = {"seed": seed, "database": given.database, "took_s": round(report.took_s, 1)}
    facts |= {"returns": report.returns, "orders": report.orders}
    print(json.dumps(facts | report.figures | {"kills_by_kind": dict(report.kills)}))
    sys.exit(1 if report.faults else 0)


async def _blow(folder: Path | None, options: StormOptions) -> Report:
    if folder is not None:
        folder.mkdir(parents=True)
        return await storm(folder, options)
    with tempfile.TemporaryDirectory(prefix="fathom-chaos-") as name:
        return await storm(Path(name), options)


if __name__ == "__main__":
    main()

"""Run benchmarks: `python -m bench NAME`, or `all`; `--json` prints one JSON object a line.

Ends with 0 also where a goal is missed: a figure is a fact, and the goal stands beside it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import AsyncIterator, Callable, Mapping

import uvloop

from bench import gateway, orchestrator, path, sandbox
from bench.measurement import Measurement, print_head, print_json, print_row

Measure = Callable[[], AsyncIterator[Measurement]]
BENCHES: Mapping[str, Measure] = {
    path.NAME: path.measure,
    sandbox.NAME: sandbox.measure,
    gateway.NAME: gateway.measure,
    orchestrator.NAME: orchestrator.measure,
}


async def _run(benches: list[Measure], *, as_json: bool) -> None:
    if not as_json:
        print_head()
    for measure in benches:
        async for measurement in measure():
            if as_json:
                print_json(measurement)
            else:
                print_row(measurement)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=[*BENCHES, "all"])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--chaos-kills",
        type=int,
        default=orchestrator.CHAOS_KILLS,
        help="processes that the orchestrator's bench kills on PostgreSQL; a quarter on SQLite",
    )
    options = parser.parse_args()
    chaos = functools.partial(orchestrator.measure, options.chaos_kills)
    benches: dict[str, Measure] = {**BENCHES, orchestrator.NAME: chaos}
    names = list(benches) if options.name == "all" else [options.name]
    uvloop.run(_run([benches[name] for name in names], as_json=options.json))


if __name__ == "__main__":
    main()

"""Run benchmarks: `python -m bench NAME`, or `all`; `--json` prints one JSON object a line.

Ends with 0 also where a goal is missed: a figure is a fact, and the goal stands beside it.
"""

from __future__ import annotations

import argparse

import uvloop

from bench import gateway, path, sandbox
from bench.measurement import print_head, print_json, print_row

BENCHES = {
    path.NAME: path.measure,
    sandbox.NAME: sandbox.measure,
    gateway.NAME: gateway.measure,
}


async def _run(names: list[str], *, as_json: bool) -> None:
    if not as_json:
        print_head()
    for name in names:
        async for measurement in BENCHES[name]():
            if as_json:
                print_json(measurement)
            else:
                print_row(measurement)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=[*BENCHES, "all"])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    names = list(BENCHES) if options.name == "all" else [options.name]
    uvloop.run(_run(names, as_json=options.json))


if __name__ == "__main__":
    main()

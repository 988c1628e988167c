"""An estimate as people read it. `--json` keeps the contract's names and units."""

from __future__ import annotations

from fathom.orchestrator.v1 import orchestrator_service_pb2

from fathom_client.command.progress_line import SEPARATOR
from fathom_client.figures import count_text, plural, span_text, usd_text


def forecast_line(found: orchestrator_service_pb2.EstimateRunResponse) -> str:
    """Return the ranges in one line: `4 to 12 calls · 20k to 90k tokens · ...`."""
    cost, runs = found.cost_usd_nanos, found.runs_considered
    times = found.time_low.ToNanoseconds() / 1e9, found.time_high.ToNanoseconds() / 1e9
    basis = f"from {plural(runs, 'finished run')}" if runs else "no finished run to go by"
    return SEPARATOR.join(
        [
            f"{count_text(found.calls.low)} to {count_text(found.calls.high)} calls",
            f"{count_text(found.tokens.low)} to {count_text(found.tokens.high)} tokens",
            f"{usd_text(cost.low)} to {usd_text(cost.high)}",
            f"{span_text(times[0])} to {span_text(times[1])}",
            basis,
        ]
    )

"""A run's progress in one line: `turn 3/20 · 212 calls (6 live) · 1.4M tok · $0.31/$5 · 0:42`."""

from __future__ import annotations

from fathom.orchestrator.v1 import run_pb2

from fathom_client.figures import clock_text, count_text, usd_text
from fathom_client.run_progress import RunProgress

SEPARATOR = " · "


def progress_line(progress: RunProgress, now_s: float) -> str:
    """Return the line for a run as of the unix time `now_s`."""
    if progress.state == run_pb2.Run.STATE_QUEUED and not progress.turns:
        return "waiting to start"
    turns = f"turn {progress.turns}"
    if progress.turns_max:
        turns += f"/{progress.turns_max}"
    calls = f"{progress.sub_calls:,} call{'' if progress.sub_calls == 1 else 's'}"
    if progress.sub_calls_live:
        calls += f" ({progress.sub_calls_live} live)"
    figures = [turns, calls]
    if progress.children:
        live = f" ({progress.children_live} live)" if progress.children_live else ""
        noun = "child" if progress.children == 1 else "children"
        figures.append(f"{progress.children:,} {noun}{live}")
    cost = usd_text(progress.cost_usd_nanos)
    if progress.cost_usd_nanos_max is not None:
        cost += f"/{usd_text(progress.cost_usd_nanos_max)}"
    elapsed = clock_text(progress.elapsed_s(now_s))
    return SEPARATOR.join([*figures, f"{count_text(progress.tokens)} tok", cost, elapsed])

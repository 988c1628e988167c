"""Runs as a table to read: how each stands, what it took, and what was asked."""

from __future__ import annotations

from collections.abc import Iterable

from fathom.orchestrator.v1 import run_pb2

from fathom_client.command.table import aligned
from fathom_client.command.terminal import plain
from fathom_client.figures import count_text, span_text
from fathom_client.results import Result

_QUESTION_CHARACTERS = 48


def run_table(found: Iterable[run_pb2.Run], *, now_s: float) -> list[str]:
    """Return the heading and a line for each run; `now_s` is the unix time that ages go by."""
    rows = [("RUN", "STATE", "TURNS", "CALLS", "TOKENS", "COST", "AGE", "QUESTION")]
    for run in found:
        result = Result(run)
        question = " ".join(plain(run.spec.question).split())
        if len(question) > _QUESTION_CHARACTERS:
            question = question[: _QUESTION_CHARACTERS - 1] + "…"
        age = span_text(max(1, round(now_s - run.create_time.ToNanoseconds() / 1e9)))
        rows.append(
            (
                run.name,
                result.status,
                str(run.turns),
                count_text(run.sub_calls),
                count_text(result.tokens),
                result.cost_text,
                age,
                question,
            )
        )
    return aligned(rows)

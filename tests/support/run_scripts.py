"""Replies of a scripted root model, and what is read from the events of a run that they made."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.orchestrator.v1.run_event_pb2 import RunEvent

DONE = "FINAL(done)"


def cell(code: str) -> str:
    """Return a reply with one cell."""
    return cells(code)


def cells(*codes: str) -> str:
    """Return a reply with several cells."""
    return "I look.\n" + "\n".join(f"```repl\n{code}\n```" for code in codes)


def cases(events: Sequence[RunEvent]) -> list[str | None]:
    """Return which kind each event is of, in order."""
    return [event.WhichOneof("event") for event in events]


def notices(events: Sequence[RunEvent]) -> list[str]:
    """Return the kinds of the notices, in order."""
    return [event.notice.kind for event in events if event.HasField("notice")]


def endings(events: Sequence[RunEvent]) -> list[str]:
    """Return how each cell ended, in order."""
    return [event.cell_finished.ending for event in events if event.HasField("cell_finished")]

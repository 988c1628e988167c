"""Child runs in a line each: how one ended, what it took, and where its own steps are."""

from __future__ import annotations

from fathom.orchestrator.v1 import run_event_pb2

from fathom_client.command.progress_line import SEPARATOR
from fathom_client.command.terminal import plain
from fathom_client.figures import plural
from fathom_client.results import Result

_TEXT_CHARACTERS = 60


def child_line(changed: run_event_pb2.ChildRunChanged) -> str:
    """Return the line of a child run that was started, has ended or could not be started."""
    result = Result(changed.run)
    if not changed.run.name:
        why = str(result.error) if result.error is not None else "nothing said why"
        return f"child {changed.child} was not started: {_one_line(why)}"
    facts = [f"child {changed.child} {changed.run.name}"]
    if result.status in ("queued", "running"):
        return SEPARATOR.join([*facts, f"“{_one_line(changed.run.spec.question)}”"])
    facts += [result.status, plural(changed.run.sub_calls, "call")]
    facts.append(result.cost_text)
    said = result.text if result.text is not None else str(result.error or "")
    return SEPARATOR.join([*facts, f"“{_one_line(said)}”" if said else "no answer"])


def _one_line(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= _TEXT_CHARACTERS else f"{line[: _TEXT_CHARACTERS - 1]}…"

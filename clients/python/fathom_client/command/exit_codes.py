"""What the command's exit status means; scripts branch on these, so they never change."""

from __future__ import annotations

from fathom.orchestrator.v1 import run_pb2

ANSWERED = 0
FAILED = 1
USAGE = 2
PARTIAL = 3
NOT_AUTHORISED = 4
UNREACHABLE = 5
INTERRUPTED = 130

_OF_STATES = {
    run_pb2.Run.STATE_ANSWERED: ANSWERED,
    run_pb2.Run.STATE_PARTIAL: PARTIAL,
}


def of_run(state: run_pb2.Run.State.ValueType) -> int:
    """Return the exit status for a run that ended in `state`."""
    return _OF_STATES.get(state, FAILED)

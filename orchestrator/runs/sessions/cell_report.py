"""How a cell ended: as the event that is kept, and from that in words for the model."""

from __future__ import annotations

from fathom.orchestrator.v1.run_event_pb2 import CellFinished, VariableSummary
from fathom.sandbox.v1.execution_pb2 import ExecutionResult, Variable

from common.errors import ReceivedError
from orchestrator.runs.budget import limit_in
from orchestrator.runs.sessions.executions import ending_word
from orchestrator.runs.sessions.shown_output import ShownOutput

WELL_ENDED = frozenset({"COMPLETED", "EXITED"})
LOST_ENDING = "SESSION_LOST"
"""The session is gone with its variables."""
CODE_LOST_ENDING = "WORKER_LOST"
"""The code is undone; the session is as it was before it."""
ABORTED_ENDING = "ABORTED"
"""There is no result, because the run was stopped or the sandbox refused."""
_UNDONE = "its effects are undone"
_WORDS = {
    "COMPLETED": "ran without error",
    "RAISED": "raised an exception; what it did before that is kept",
    "SYNTAX_ERROR": "does not parse as Python, so none of it was run",
    "EXITED": "ended with sys.exit; the session goes on",
    "OUT_OF_FUEL": f"was stopped because it computed too much; {_UNDONE}",
    "TIMED_OUT": f"was stopped because it took too long; {_UNDONE}",
    "OUT_OF_MEMORY": f"was stopped for lack of memory; {_UNDONE}",
    "INTERRUPTED": f"was interrupted; {_UNDONE}",
    "TRAPPED": f"broke the interpreter; {_UNDONE}",
    "REFUSED": "was refused by the code check, so none of it was run; write it without what is "
    "named there",
    "ABORTED": f"was stopped; {_UNDONE}",
    "WORKER_LOST": f"was lost when the process that ran it ended; {_UNDONE}, all from before it is "
    "kept",
}


def whole_output(written: str, result: ExecutionResult) -> str:
    """Return what a cell wrote, with its traceback where that is not among it."""
    trace = result.error.traceback.strip()
    if not trace or trace in written:
        return written
    return f"{written}\n{trace}" if written else trace


def own_output(written: str, result: ExecutionResult) -> str:
    """Return what a cell's code wrote, without the traceback: findings, where there are any."""
    return written.replace(result.error.traceback.strip() or "\0", "").strip()


def words_for(finished: CellFinished) -> tuple[str, str]:
    """Return how the cell ended, and what it printed, as the model is told."""
    ending = _WORDS.get(finished.ending, "ended in an unknown way")
    shown = finished.output_shown
    if finished.error and finished.error not in shown:
        ending += f" ({finished.error})"
    if not shown.strip():
        return ending, "It printed nothing."
    return ending, f"It printed:\n<output>\n{shown.rstrip()}\n</output>"


def finished_event(
    result: ExecutionResult, shown: ShownOutput, *, characters: int, key: str, sub_calls: int
) -> CellFinished:
    """Return the event of a cell's end; `key` is that of the whole output, where it is stored."""
    return CellFinished(
        ending=ending_word(result),
        output_shown=shown.text,
        output_characters=characters,
        output_key=key,
        error=error_line(result),
        own_time=result.own_time,
        wait_time=result.wait_time,
        sub_calls=sub_calls,
        variables=[_summary(variable) for variable in result.variables],
        state_kept=result.state_kept,
        limit_reached=limit_of(result),
    )


def lost_event(*, sub_calls: int) -> CellFinished:
    """Return the event of a cell whose session was lost and cannot be rebuilt."""
    return CellFinished(
        ending=LOST_ENDING, error="the sandbox lost the session", sub_calls=sub_calls
    )


def code_lost_event(*, sub_calls: int) -> CellFinished:
    """Return the event of a cell that takes every session with it."""
    error = "the session broke down each time that it was run"
    return CellFinished(ending=CODE_LOST_ENDING, error=error, sub_calls=sub_calls)


def aborted_event(
    shown: ShownOutput, *, characters: int, sub_calls: int, limit: str = ""
) -> CellFinished:
    """Return the event of a cell during which the run was stopped, with what it had written."""
    return CellFinished(
        ending=ABORTED_ENDING,
        output_shown=shown.text,
        output_characters=characters,
        error="the run was stopped while the cell ran",
        sub_calls=sub_calls,
        limit_reached=limit,
    )


def limit_of(result: ExecutionResult) -> str:
    """Return the limit of the run that stopped a sub-call, named as in the contract; else
    empty."""
    if not result.HasField("limit_reached"):
        return ""
    return limit_in(ReceivedError(result.limit_reached))


def error_line(result: ExecutionResult) -> str:
    """Return the exception and its message in one line; empty where there is none."""
    return ": ".join(part for part in (result.error.type, result.error.message) if part)


def _summary(variable: Variable) -> VariableSummary:
    length = variable.length if variable.HasField("length") else None
    return VariableSummary(
        name=variable.name, type=variable.type, preview=variable.preview, length=length
    )

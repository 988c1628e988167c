"""How a cell's end is told to the model: in plain words, for every ending of the contract."""

from __future__ import annotations

import pytest
from fathom.orchestrator.v1.run_event_pb2 import CellFinished
from fathom.sandbox.v1.execution_pb2 import ExecutionResult

from orchestrator.runs.sessions.cell_report import finished_event, words_for
from orchestrator.runs.sessions.shown_output import ShownOutput

ENDINGS = sorted(set(ExecutionResult.Ending.values()) - {ExecutionResult.ENDING_UNSPECIFIED})


def finished(result: ExecutionResult) -> CellFinished:
    return finished_event(result, ShownOutput("", is_whole=True), characters=0, key="", sub_calls=0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_has_its_words(ending: ExecutionResult.Ending.ValueType) -> None:
    """A model that is told of an unknown ending cannot know whether its variables are there."""
    words, _ = words_for(finished(ExecutionResult(ending=ending)))

    assert "unknown" not in words


def test_a_refused_cell_is_said_not_to_have_run_and_why() -> None:
    result = ExecutionResult(ending=ExecutionResult.ENDING_REFUSED)
    result.error.type, result.error.message = "RefusedError", "line 1: ctypes (import ctypes)"

    words, _ = words_for(finished(result))

    assert "none of it was run" in words
    assert "line 1: ctypes (import ctypes)" in words


def test_a_cell_whose_worker_died_is_said_to_be_undone() -> None:
    words, _ = words_for(finished(ExecutionResult(ending=ExecutionResult.ENDING_WORKER_LOST)))

    assert "its effects are undone" in words
    assert "all from before it is kept" in words

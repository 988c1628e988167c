"""Whether a reply gives the run's answer. A plan is never an answer: FINAL counts only where all
that stands beside it ran well.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from fathom.orchestrator.v1.run_pb2 import Answer
from fathom.sandbox.v1.execution_pb2 import FinalValue

from orchestrator.runs.cells import CellsOutcome
from orchestrator.runs.directives import Directive, Problem
from orchestrator.runs.replies import Reply


class Variables(Protocol):
    """The session's variables."""

    variables: frozenset[str]

    async def read_variable(self, name: str, *, turn: int) -> FinalValue | str:
        """Return a variable's value, or words about why there is none."""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An answer was given and does not count."""

    why: str
    """For the model; no full stop."""


async def judge(
    reply: Reply, outcome: CellsOutcome | None, variables: Variables, *, turn: int
) -> Answer | Rejection | None:
    """Return the answer of a reply, or why it does not count; None where none was given.

    `outcome` is what the reply's cells came to. A value given in a cell goes before a directive
    in the text: it was computed. Raises what reading a variable raises.
    """
    if outcome is not None and outcome.final is not None:
        if not outcome.is_well:
            return Rejection("a cell of that reply failed")
        return _answer(outcome.final, Answer.SOURCE_CELL)
    directive = reply.directive
    if directive is None:
        return None
    if directive.problem is not None:
        return Rejection(directive.problem.value)
    if outcome is not None and not outcome.is_well:
        return Rejection("a cell of that reply failed")
    if reply.has_cut_fence:
        return Rejection("a cell of that reply was not closed, and so not run")
    name = variable_meant(directive, variables.variables)
    if not name:
        return Answer(text=directive.text, source=Answer.SOURCE_TEXT)
    value = await variables.read_variable(name, turn=turn)
    if isinstance(value, str):
        return Rejection(value.rstrip("."))
    return _answer(value, Answer.SOURCE_TEXT)


def variable_meant(directive: Directive, known: frozenset[str]) -> str:
    """Return the variable meant, or an empty name: `FINAL(total)` means one where there is one of
    that name."""
    return directive.bare_name if directive.bare_name in known else directive.variable


def _answer(value: FinalValue, source: Answer.Source.ValueType) -> Answer | Rejection:
    if not value.text.strip():
        return Rejection(Problem.EMPTY.value)
    return Answer(text=value.text, is_json=value.is_json, source=source)

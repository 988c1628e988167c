"""Whether a reply gives the run's answer. A plan is never an answer: FINAL counts only where all
that stands beside it ran well, and where its value fits the schema that was asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from fathom.orchestrator.v1.run_pb2 import Answer, Citation
from fathom.sandbox.v1.execution_pb2 import FinalValue

from orchestrator.runs.answers.answer_schema import AnswerSchema
from orchestrator.runs.answers.claims import CLAIMS_MAX
from orchestrator.runs.answers.directives import Directive, Problem
from orchestrator.runs.answers.replies import Reply
from orchestrator.runs.sessions.cells import CellsOutcome


class Variables(Protocol):
    """The session's variables."""

    variables: frozenset[str]

    async def read_variable(self, name: str, *, turn: int) -> FinalValue | str:
        """Return a variable's value, or words about why there is none."""


class Citations(Protocol):
    """Looks up what answers cite."""

    async def check(self, answer: Answer) -> None:
        """Set the answer's citations to what looking them up has shown."""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An answer was given and does not count."""

    why: str
    """For the model; no full stop."""
    unfit: Answer | None = None
    """The answer, with its `schema_errors`, where it does not fit the schema."""
    unsure: Answer | None = None
    """The answer, where only its confidence is too low."""
    uncited: Answer | None = None
    """The answer, where only what it rests on is missing."""


async def judge(
    reply: Reply,
    outcome: CellsOutcome | None,
    variables: Variables,
    schema: AnswerSchema,
    *,
    turn: int,
) -> Answer | Rejection | None:
    """Return the answer of a reply, or why it does not count; None where none was given.

    `outcome` is what the reply's cells came to. A value given in a cell goes before a directive
    in the text: it was computed. What the answer cites is as the code says, and not looked up.
    Raises what reading a variable raises.
    """
    given = await _given(reply, outcome, variables, turn=turn)
    if isinstance(given, Answer):
        await schema.fit(given)
        if given.schema_errors:
            return Rejection("it does not fit the schema", unfit=given)
    return given


async def _given(
    reply: Reply, outcome: CellsOutcome | None, variables: Variables, *, turn: int
) -> Answer | Rejection | None:
    """Return what a reply gives as the answer, whatever is asked of it."""
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
        return Answer(
            text=directive.text, source=Answer.SOURCE_TEXT, confidence=directive.confidence
        )
    value = await variables.read_variable(name, turn=turn)
    if isinstance(value, str):
        return Rejection(value.rstrip("."))
    answer = _answer(value, Answer.SOURCE_TEXT)
    if isinstance(answer, Answer) and directive.confidence is not None:
        answer.confidence = directive.confidence
    return answer


def sure_enough(verdict: Answer | Rejection | None, minimum: float) -> Answer | Rejection | None:
    """Return the verdict, but a rejection of an answer whose confidence is below the minimum or
    is not stated; a minimum of 0 asks for none."""
    if not isinstance(verdict, Answer) or not minimum:
        return verdict
    if not verdict.HasField("confidence"):
        return Rejection("it stated none", unsure=verdict)
    if verdict.confidence < minimum:
        return Rejection(f"it stated {verdict.confidence:g}", unsure=verdict)
    return verdict


async def cited(answer: Answer, citations: Citations) -> Answer | Rejection:
    """Return the answer, or its rejection where nothing that it cites is found in the data. What
    could not be looked up is not held against it."""
    looked_up = Answer()
    looked_up.CopyFrom(answer)
    await citations.check(looked_up)
    if any(c.verified or c.check == Citation.CHECK_NOT_DONE for c in looked_up.citations):
        return answer
    return Rejection("it cites nothing that stands in the data", uncited=answer)


def variable_meant(directive: Directive, known: frozenset[str]) -> str:
    """Return the variable meant, or an empty name: `FINAL(total)` means one where there is one of
    that name."""
    return directive.bare_name if directive.bare_name in known else directive.variable


def _answer(value: FinalValue, source: Answer.Source.ValueType) -> Answer | Rejection:
    if not value.text.strip():
        return Rejection(Problem.EMPTY.value)
    answer = Answer(text=value.text, is_json=value.is_json, source=source)
    if value.HasField("confidence"):
        answer.confidence = value.confidence
    answer.citations.extend(
        Citation(document=place.document, start=place.start, end=place.end, quote=place.quote)
        for place in value.citations[:CLAIMS_MAX]
    )
    return answer

"""The loop: ask the root model, run the cells of its reply, tell it what came of them, until it
gives a final answer or a limit is reached.

It writes down what happens and decides what counts as an answer. Asking the model and running code
are steps, each told by an event; a run that is driven again goes through what its log has without
doing it. States, errors and the end of a run are its driver's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fathom.gateway.v1.generation_pb2 import Generation, Message
from fathom.orchestrator.v1.run_pb2 import Answer
from fathom.sandbox.v1.execution_pb2 import FinalValue

from common.errors import ReceivedError
from orchestrator.errors import NoAnswerError
from orchestrator.runs.answers.answer_schema import AnswerSchema
from orchestrator.runs.answers.citations import CitationDesk
from orchestrator.runs.answers.replies import Reply, parse_reply_aside
from orchestrator.runs.answers.verdict import Rejection, cited, judge, sure_enough, variable_meant
from orchestrator.runs.budget import Budget, LimitReachedError
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.model.compaction import is_window_exceeded
from orchestrator.runs.model.history import History
from orchestrator.runs.model.last_request import LastRequest
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.model.root_model import RootModel
from orchestrator.runs.sessions.cells import CellRunner, CellsOutcome
from orchestrator.runs.sessions.checkpoints import Checkpoints

_REJECTED = "FINAL_REJECTED"
"""Kind of the notice that an answer does not count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopParts:
    """What a loop works with; all of it belongs to one run."""

    run_id: str
    """The run."""
    root: RootModel
    """The root model."""
    cells: CellRunner
    """Runs code."""
    checkpoints: Checkpoints
    """Stores the session now and then."""
    history: History
    """The conversation, begun."""
    budget: Budget
    """The run's limits."""
    journal: RunJournal
    """Where steps are written down."""
    prompts: PromptBook
    """What the model is told."""
    last_request: LastRequest
    """How much a last request may hold."""
    schema: AnswerSchema
    """What the answer must fit."""
    citations: CitationDesk
    """Looks up what the answer claims of the context."""
    direct: Sequence[Message] = ()
    """What the model is asked in turn 1 where it is shown all of the data; empty where not."""
    confidence_min: float = 0.0
    """How sure the model must be; 0 where it need not say."""
    citations_required: bool = False
    """Whether an answer counts only where something that it cites is found in the data."""


class RunLoop:
    """The loop of one run."""

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._last_prose = ""
        self._unfit: Answer | None = None
        """The newest answer that was refused: it does not fit the schema, or cites nothing."""
        self._unsure: Answer | None = None
        """The newest answer that was kept because the model was not sure enough of it."""

    async def answer(self) -> Answer:
        """Return the answer; `limit_reached` is set in one that a limit cut short.

        Raises NoAnswerError, and ReceivedError where the gateway or the sandbox fails.
        """
        answer = await self._given()
        await self._parts.citations.check(answer)
        return answer

    async def _given(self) -> Answer:
        """Return the answer that the model gave, with what it cites not looked up."""
        try:
            while True:
                turn = self._begin_turn()
                is_direct = turn == 1 and bool(self._parts.direct)
                answer = await (self._direct_turn(turn) if is_direct else self._turn(turn))
                if answer is not None:
                    return answer
                own_time_s = self._parts.cells.own_time_s
                self._parts.checkpoints.after_turn(turn, own_time_s=own_time_s)
        except LimitReachedError as limit:
            self._note_limit(limit)
            return await self._last_answer(limit)

    @property
    def found_so_far(self) -> str:
        """The last thing that a cell printed, else that the model said; empty for nothing."""
        return (self._parts.cells.last_output or self._last_prose).strip()

    def write_cut(self) -> None:
        """Write down the cell that was cut off because the run is stopped, if there is one."""
        self._parts.cells.write_cut()

    def _begin_turn(self) -> int:
        """Count a turn and return its number, from 1; raises LimitReachedError."""
        budget = self._parts.budget
        limit = self._limit_after(budget.turns)
        if limit is not None:
            raise limit
        self._parts.journal.run.turns = budget.count_turn()
        return budget.turns

    def _limit_after(self, turn: int) -> LimitReachedError | None:
        """Return the limit that leaves nothing for a turn after this one; None where there is
        something. What the log says of that goes first: the clock has moved on since."""
        past = self._parts.journal.limit_after(turn)
        if past is not None:
            return LimitReachedError(past.limit, value=past.value, spent=past.spent)
        if self._parts.journal.went_beyond(turn):
            return None
        return self._parts.budget.exhausted()

    async def _turn(self, turn: int) -> Answer | None:
        """Take one turn; return the answer, or None where the model was told to go on."""
        parts = self._parts
        replied = await parts.root.reply(turn, parts.cells.summaries)
        reply = await parse_reply_aside(replied.text)
        self._last_prose = reply.prose or self._last_prose
        parts.history.add_reply(replied.text)
        outcome: CellsOutcome | None = None
        told: list[str] = []
        if reply.cells:
            outcome = await parts.cells.run(reply.cells, turn=turn)
            told.append(outcome.feedback)
        if reply.has_cut_fence:
            told.append(parts.prompts.text("fence_cut"))
        verdict = await self._judged(reply, outcome, turn=turn)
        limit = parts.budget.reached(outcome.limit) if outcome and outcome.limit else None
        is_cut = replied.finish_reason == Generation.FINISH_REASON_LENGTH
        if isinstance(verdict, Answer) and not parts.journal.went_beyond(turn):
            if limit is not None:
                self._note_limit(limit)
                verdict.limit_reached = limit.limit
            return verdict
        # A fork can have turns whose answer its own spec would take, and a check that took too
        # long can end in time now: the log went on from them, and says why.
        why = parts.journal.notice_of(_REJECTED, turn=turn)
        if isinstance(verdict, Rejection):
            why = self._rejection(verdict)
        if why:
            told.append(why)
            parts.journal.notice(_REJECTED, why, turn=turn)
            if is_cut:
                told.append(parts.prompts.text("reply_cut"))
        if not told:
            told.append(self._nothing_to_do(reply, is_cut=is_cut, turn=turn))
        # The last request follows at once where a limit is reached: nothing may contradict it.
        limit = limit or self._limit_after(turn)
        parts.history.add_feedback(self._feedback(told, turn=turn, goes_on=limit is None))
        if limit is not None:
            raise limit
        return None

    async def _direct_turn(self, turn: int) -> Answer | None:
        """Show the model all of the data; return its answer, or None where it gives none that
        counts. The conversation of the loop begins after it, and knows nothing of it."""
        parts = self._parts
        try:
            replied = await parts.root.reply_to_all(turn, parts.direct)
        except ReceivedError as error:
            if not is_window_exceeded(error):
                raise
        else:
            reply = await parse_reply_aside(replied.text)
            if reply.directive is not None and not reply.directive.variable:
                verdict = await self._judged(reply, None, turn=turn)
                if isinstance(verdict, Answer) and not parts.journal.went_beyond(turn):
                    return verdict
                if isinstance(verdict, Rejection):
                    self._rejection(verdict)
        text = "the model gave no answer from reading alone, and goes on with code"
        parts.journal.notice("DIRECT_LEFT", text, turn=turn)
        return None

    async def _judged(
        self, reply: Reply, outcome: CellsOutcome | None, *, turn: int
    ) -> Answer | Rejection | None:
        """Return whether a reply gives an answer, and one that the model is sure enough of."""
        parts = self._parts
        verdict = await judge(reply, outcome, parts.cells, parts.schema, turn=turn)
        verdict = sure_enough(verdict, parts.confidence_min)
        if isinstance(verdict, Answer) and parts.citations_required:
            return await cited(verdict, parts.citations)
        return verdict

    def _note_limit(self, limit: LimitReachedError) -> None:
        self._parts.journal.limit_reached(
            limit.limit, value=limit.value, spent=limit.spent, turn=self._parts.budget.turns
        )

    def _rejection(self, rejection: Rejection) -> str:
        """Return what the model is told of an answer that does not count."""
        if rejection.unsure is not None:
            self._unsure = rejection.unsure
            minimum = f"{self._parts.confidence_min:g}"
            return self._parts.prompts.text("answer_unsure", minimum=minimum, stated=rejection.why)
        if rejection.uncited is not None:
            self._unfit = rejection.uncited
            return self._parts.prompts.text("answer_uncited")
        if rejection.unfit is None:
            return self._parts.prompts.text("final_rejected", why=rejection.why)
        self._unfit = rejection.unfit
        errors = "\n".join(f"- {error}" for error in rejection.unfit.schema_errors)
        return self._parts.prompts.text("answer_unfit", errors=errors)

    def _nothing_to_do(self, reply: Reply, *, is_cut: bool, turn: int) -> str:
        """Write down that a reply had neither cell nor answer; return what the model is told."""
        without_code = "reply_empty" if reply.is_empty else "reply_without_code"
        text = self._parts.prompts.text("reply_cut" if is_cut else without_code)
        self._parts.journal.notice("REPLY_WITHOUT_CODE", text, turn=turn)
        return text

    def _feedback(self, told: list[str], *, turn: int, goes_on: bool) -> str:
        """Return all that the model is told after a turn."""
        prompts, limits = self._parts.prompts, self._parts.budget.limits
        status = prompts.text(
            "turn_status",
            turn=turn,
            turns=limits.turns_max,
            sub_calls=self._parts.budget.sub_calls_in_all,
            sub_calls_max=limits.sub_calls_max,
        )
        told = [*told, status]
        if goes_on:
            is_last = turn == limits.turns_max - 1
            told.append(prompts.text("last_turn" if is_last else "go_on"))
        return "\n\n".join(told)

    async def _last_answer(self, limit: LimitReachedError) -> Answer:
        """Ask once more, without code; without a reply make do with what there is. An answer that
        the model was not sure enough of is better than both."""
        parts = self._parts
        answer = Answer(limit_reached=limit.limit)
        if self._unsure is not None:
            answer.MergeFrom(self._unsure)
            return answer
        failure: ReceivedError | None = None
        try:
            answer.text = await self._ask_last(limit)
            answer.source = Answer.SOURCE_FORCED
        except ReceivedError as error:
            failure = error
        except LimitReachedError:
            pass
        if not answer.text:
            if self._unfit is not None:
                answer.MergeFrom(self._unfit)
            else:
                answer.text = self.found_so_far
            answer.source = Answer.SOURCE_SALVAGED
        if answer.text:
            await parts.schema.fit(answer)
            return answer
        if failure is not None:
            raise failure
        raise NoAnswerError(f"runs/{parts.run_id}", parts.budget.turns, limit.limit)

    async def _ask_last(self, limit: LimitReachedError) -> str:
        parts = self._parts
        parts.budget.open_reserve()
        why = parts.prompts.text(f"limit_{limit.limit}")
        schema = parts.schema.json
        name = "last_answer_typed" if schema else "last_answer"
        request = parts.prompts.text(name, why=why, schema=schema)
        turn = parts.budget.turns + 1
        fit = parts.last_request.fit(parts.budget)
        enforced = parts.schema.enforced(bytes_max=fit.bytes_max)
        replied = await parts.root.last_reply(
            turn,
            parts.history.with_last_request(
                request, bytes_max=fit.bytes_max - len(enforced.encode())
            ),
            output_tokens_max=fit.output_tokens,
            response_schema_json=enforced,
        )
        return await self._last_text(replied.text, turn=turn)

    async def _last_text(self, text: str, *, turn: int) -> str:
        """Return the answer in a last reply: its prose, or what a directive in it gives. Code
        is no answer."""
        reply = await parse_reply_aside(text)
        directive = reply.directive
        if directive is None or directive.problem is not None:
            # JSON may stand in a fence that is meant for code.
            return reply.prose or (text if self._parts.schema.json else "")
        name = variable_meant(directive, self._parts.cells.variables)
        if not name:
            return directive.text
        value = await self._parts.cells.read_variable(name, turn=turn)
        return value.text if isinstance(value, FinalValue) else ""

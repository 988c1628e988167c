"""The loop: ask the root model, run the cells of its reply, tell it what came of them, until it
gives a final answer or a limit is reached.

It writes down what happens and decides what counts as an answer. States, errors and the end of a
run are its driver's business; durability would be one step a turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

import grpc
from fathom.gateway.v1.generation_pb2 import Generation, Message
from fathom.orchestrator.v1.run_event_pb2 import ModelReplied, RunEvent, TurnStarted
from fathom.orchestrator.v1.run_pb2 import Answer
from fathom.sandbox.v1.execution_pb2 import FinalValue

from common.errors import ReceivedError
from orchestrator.errors import NoAnswerError
from orchestrator.runs.budget import Budget, LimitReachedError, limit_in, usage_in
from orchestrator.runs.cells import CellRunner, CellsOutcome
from orchestrator.runs.history import History
from orchestrator.runs.journal import RunJournal
from orchestrator.runs.last_request import LastRequest
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import Model, ModelCall
from orchestrator.runs.prompt_book import PromptBook
from orchestrator.runs.replies import Reply, parse_reply
from orchestrator.runs.verdict import Rejection, judge, variable_meant

_LONG_REPLY_CHARACTERS = 30_000
"""A longer reply is parsed in a thread, away from the other runs."""
_REPLY_CHARACTERS_MAX = 400_000
"""An event with text and reasoning fits a message also where a character takes four bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopParts:
    """What a loop works with; all of it belongs to one run."""

    run_id: str
    """The run."""
    root_tier: str
    """Tier or deployment of the root model."""
    model: Model
    """The root model."""
    cells: CellRunner
    """Runs code."""
    history: History
    """The conversation, begun."""
    budget: Budget
    """The run's limits."""
    passes: RunPasses
    """The run's tokens."""
    journal: RunJournal
    """Where steps are written down."""
    prompts: PromptBook
    """What the model is told."""
    last_request: LastRequest
    """How much a last request may hold."""


class RunLoop:
    """The loop of one run."""

    def __init__(self, parts: LoopParts) -> None:
        self._parts = parts
        self._last_prose = ""

    async def answer(self) -> Answer:
        """Return the answer; `limit_reached` is set in one that a limit cut short.

        Raises NoAnswerError, and ReceivedError where the gateway or the sandbox fails.
        """
        try:
            while True:
                turn = self._parts.budget.begin_turn()
                self._parts.journal.run.turns = turn
                answer = await self._turn(turn)
                if answer is not None:
                    return answer
        except LimitReachedError as limit:
            self._note_limit(limit)
            return await self._last_answer(limit)

    @property
    def found_so_far(self) -> str:
        """The last thing that a cell printed, else that the model said; empty for nothing."""
        return (self._parts.cells.last_output or self._last_prose).strip()

    async def _turn(self, turn: int) -> Answer | None:
        """Take one turn; return the answer, or None where the model was told to go on."""
        parts = self._parts
        generation = await self._ask(
            list(parts.history.messages),
            turn=turn,
            token=parts.passes.for_turn(),
            timeout_s=parts.budget.work_left_s,
        )
        reply = await _parse(generation.text)
        self._last_prose = reply.prose or self._last_prose
        self._note_reply(generation, cells=len(reply.cells), turn=turn)
        parts.history.add_reply(generation.text)
        outcome: CellsOutcome | None = None
        told: list[str] = []
        if reply.cells:
            outcome = await parts.cells.run(reply.cells, turn=turn)
            told.append(outcome.feedback)
        if reply.has_cut_fence:
            told.append(parts.prompts.text("fence_cut"))
        verdict = await judge(reply, outcome, parts.cells, turn=turn)
        limit = parts.budget.reached(outcome.limit) if outcome and outcome.limit else None
        is_cut = generation.finish_reason == Generation.FINISH_REASON_LENGTH
        if isinstance(verdict, Answer):
            if limit is not None:
                self._note_limit(limit)
                verdict.limit_reached = limit.limit
            return verdict
        if isinstance(verdict, Rejection):
            told.append(parts.prompts.text("final_rejected", why=verdict.why))
            parts.journal.notice("FINAL_REJECTED", told[-1], turn=turn)
            if is_cut:
                told.append(parts.prompts.text("reply_cut"))
        if not told:
            told.append(self._nothing_to_do(reply, is_cut=is_cut, turn=turn))
        # The last request follows at once where a limit is reached: nothing may contradict it.
        limit = limit or parts.budget.exhausted()
        parts.history.add_feedback(self._feedback(told, turn=turn, goes_on=limit is None))
        if limit is not None:
            raise limit
        return None

    async def _ask(
        self,
        messages: list[Message],
        *,
        turn: int,
        token: str,
        timeout_s: float,
        is_last: bool = False,
        output_tokens_max: int | None = None,
    ) -> Generation:
        """Ask the root model and count what it took; raises LimitReachedError and ReceivedError."""
        parts = self._parts
        started = TurnStarted(
            messages=len(messages),
            characters=sum(len(message.text) for message in messages),
            last_answer=is_last,
        )
        parts.journal.add(RunEvent(turn=turn, turn_started=started))
        call = ModelCall(
            tier=parts.root_tier,
            messages=messages,
            request_id=f"{parts.run_id}/{turn}/0/0",
            turn=turn,
            run_token=token,
            timeout_s=timeout_s,
            output_tokens_max=output_tokens_max,
        )
        started_s = time.monotonic()
        try:
            generation = await parts.model.generate(call)
        except ReceivedError as error:
            parts.budget.add(usage_in(error))
            parts.journal.set_usage(parts.budget.usage)
            raise self._limit_in(error) or error from error
        _bound(generation)
        if not generation.HasField("elapsed"):
            generation.elapsed.FromNanoseconds(int((time.monotonic() - started_s) * 1e9))
        parts.budget.add(generation.usage)
        parts.journal.set_usage(parts.budget.usage)
        return generation

    def _limit_in(self, error: ReceivedError) -> LimitReachedError | None:
        """Return the limit of the run that a failed call tells of."""
        budget = self._parts.budget
        limit = limit_in(error)
        if limit:
            return budget.reached(limit)
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and budget.is_work_over:
            return budget.reached("time_max")
        return None

    def _note_limit(self, limit: LimitReachedError) -> None:
        self._parts.journal.limit_reached(
            limit.limit, value=limit.value, spent=limit.spent, turn=self._parts.budget.turns
        )

    def _note_reply(self, generation: Generation, *, cells: int, turn: int) -> None:
        replied = ModelReplied(
            text=generation.text,
            reasoning=generation.reasoning,
            finish_reason=generation.finish_reason,
            usage=generation.usage,
            model=generation.model,
            elapsed=generation.elapsed,
            cells=cells,
            run_usage=self._parts.budget.usage,
        )
        self._parts.journal.add(RunEvent(turn=turn, model_replied=replied))

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
            sub_calls=self._parts.budget.sub_calls,
            sub_calls_max=limits.sub_calls_max,
        )
        told = [*told, status]
        if goes_on:
            is_last = turn == limits.turns_max - 1
            told.append(prompts.text("last_turn" if is_last else "go_on"))
        return "\n\n".join(told)

    async def _last_answer(self, limit: LimitReachedError) -> Answer:
        """Ask once more, without code; without a reply make do with what there is."""
        parts = self._parts
        answer = Answer(limit_reached=limit.limit)
        failure: ReceivedError | None = None
        try:
            answer.text = await self._ask_last(limit)
            answer.source = Answer.SOURCE_FORCED
        except ReceivedError as error:
            failure = error
        except LimitReachedError:
            pass
        if not answer.text:
            answer.text = self.found_so_far
            answer.source = Answer.SOURCE_SALVAGED
        if answer.text:
            return answer
        if failure is not None:
            raise failure
        raise NoAnswerError(f"runs/{parts.run_id}", parts.budget.turns, limit.limit)

    async def _ask_last(self, limit: LimitReachedError) -> str:
        parts = self._parts
        parts.budget.open_reserve()
        why = parts.prompts.text(f"limit_{limit.limit}")
        request = parts.prompts.text("last_answer", why=why)
        turn = parts.budget.turns + 1
        fit = parts.last_request.fit(parts.budget)
        generation = await self._ask(
            parts.history.with_last_request(request, bytes_max=fit.bytes_max),
            turn=turn,
            token=parts.passes.for_last_answer(),
            timeout_s=parts.budget.left_s,
            is_last=True,
            output_tokens_max=fit.output_tokens,
        )
        self._note_reply(generation, cells=0, turn=turn)
        return await self._last_text(generation.text, turn=turn)

    async def _last_text(self, text: str, *, turn: int) -> str:
        """Return the answer in a last reply: its prose, or what a directive in it gives. Code
        is no answer."""
        reply = await _parse(text)
        directive = reply.directive
        if directive is None or directive.problem is not None:
            return reply.prose
        name = variable_meant(directive, self._parts.cells.variables)
        if not name:
            return directive.text
        value = await self._parts.cells.read_variable(name, turn=turn)
        return value.text if isinstance(value, FinalValue) else ""


def _bound(generation: Generation) -> None:
    """Cut what no model writes for a turn, but a broken one might."""
    if len(generation.text) > _REPLY_CHARACTERS_MAX:
        generation.text = generation.text[:_REPLY_CHARACTERS_MAX]
        generation.finish_reason = Generation.FINISH_REASON_LENGTH
    generation.reasoning = generation.reasoning[:_REPLY_CHARACTERS_MAX]


async def _parse(text: str) -> Reply:
    if len(text) <= _LONG_REPLY_CHARACTERS:
        return parse_reply(text)
    return await asyncio.to_thread(parse_reply, text)

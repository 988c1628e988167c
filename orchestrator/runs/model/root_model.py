"""The root model as the loop asks it: each call a step, told by an event and counted once, and the
conversation kept within the model's window. What a reply means is the loop's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.gateway.v1.generation_pb2 import Generation, Message, Usage
from fathom.orchestrator.v1.run_event_pb2 import (
    ModelCallFailed,
    ModelReplied,
    RunEvent,
    TurnStarted,
    VariableSummary,
)

from common.errors import ReceivedError
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.answers.replies import parse_reply_aside
from orchestrator.runs.budget import Budget, LimitReachedError, limit_in, usage_in, usage_of
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.recorded import model_call
from orchestrator.runs.model.compaction import is_window_exceeded
from orchestrator.runs.model.history import History
from orchestrator.runs.model.room import Room
from orchestrator.runs.passes import RunPasses
from orchestrator.runs.ports import Model, ModelCall

_REPLY_CHARACTERS_MAX = 400_000
"""An event with text and reasoning fits a message also where a character takes four bytes."""
_LAST = "last"
"""Names the call of a last request."""
_BYTES_PER_TOKEN = 3
"""To say how long a conversation is that does not fit."""


class RootModel:
    """The root model of one run."""

    def __init__(
        self,
        model: Model,
        history: History,
        room: Room,
        journal: RunJournal,
        budget: Budget,
        passes: RunPasses,
        *,
        run_id: str,
        tier: str,
        open_session: Callable[[], None],
    ) -> None:
        """`open_session` begins to open the run's session, which a reply's code will want."""
        self._model = model
        self._history = history
        self._room = room
        self._journal = journal
        self._budget = budget
        self._passes = passes
        self._run_id = run_id
        self._tier = tier
        self._open_session = open_session

    async def reply(self, turn: int, variables: Sequence[VariableSummary]) -> ModelReplied:
        """Return the reply to the conversation, which is compacted where the window asks for it,
        and again where the provider refuses it as too long; `variables` are those of the session.

        Raises LimitReachedError and ReceivedError.
        """
        await self._room.make(turn, variables)
        while True:
            try:
                return await self._ask(
                    self._history.messages,
                    turn=turn,
                    token=self._passes.for_turn,
                    timeout_s=self._budget.work_left_s,
                    name=str(self._room.refusals),
                    output_tokens_max=self._room.output_tokens_max,
                )
            except ReceivedError as error:
                if not is_window_exceeded(error):
                    raise
                if not await self._room.make_after_refusal(variables):
                    raise self._window_exceeded() from error

    async def reply_to_all(self, turn: int, messages: Sequence[Message]) -> ModelReplied:
        """Return the reply to messages that hold all of the data, for which no session is opened.
        Raises like `reply`."""
        return await self._ask(
            messages,
            turn=turn,
            token=self._passes.for_turn,
            timeout_s=self._budget.work_left_s,
            is_direct=True,
            output_tokens_max=self._room.output_tokens_max,
        )

    async def last_reply(
        self,
        turn: int,
        messages: Sequence[Message],
        *,
        output_tokens_max: int,
        response_schema_json: str,
    ) -> ModelReplied:
        """Return the reply to a last request, which the reserve pays for. Raises like `reply`."""
        # A turn may have been asked and cut off where its number is then that of a last request.
        return await self._ask(
            messages,
            turn=turn,
            token=self._passes.for_last_answer,
            timeout_s=self._budget.left_s,
            name=_LAST,
            output_tokens_max=output_tokens_max,
            response_schema_json=response_schema_json,
        )

    async def _ask(
        self,
        messages: Sequence[Message],
        *,
        turn: int,
        token: Callable[[], str],
        timeout_s: float,
        name: str = "0",
        is_direct: bool = False,
        output_tokens_max: int | None = None,
        response_schema_json: str = "",
    ) -> ModelReplied:
        """Ask, which is a step, and count what it took. `token` makes the permit; `name` tells
        calls of the same turn apart. Raises LimitReachedError and ReceivedError."""
        started = TurnStarted(
            messages=len(messages),
            characters=sum(len(message.text) for message in messages),
            last_answer=name == _LAST,
            direct=is_direct,
        )
        # Nothing follows from it, so it may share a commit with what does.
        self._journal.add(RunEvent(turn=turn, turn_started=started), may_wait=True)

        async def work() -> RunEvent:
            if not is_direct:
                self._open_session()
            call = ModelCall(
                tier=self._tier,
                messages=messages,
                request_id=f"{self._run_id}/{turn}/0/{name}",
                turn=turn,
                run_token=token(),
                timeout_s=timeout_s,
                output_tokens_max=output_tokens_max,
                response_schema_json=response_schema_json,
            )
            return await self._called(call)

        event = await self._journal.step(
            f"turn {turn}", model_call(turn), work, is_kept=_is_in_ledger
        )
        if event.HasField("model_replied"):
            self._count(event.model_replied.usage)
            return event.model_replied
        self._count(event.model_call_failed.usage)
        error = ReceivedError(event.model_call_failed.error)
        raise self._limit_in(error) or error

    async def _called(self, call: ModelCall) -> RunEvent:
        """Return the event that tells what a call of the root model came to."""
        started_s, run_usage = time.monotonic(), Usage()
        run_usage.CopyFrom(self._budget.usage)
        try:
            generation = await self._generated(call)
        except ReceivedError as error:
            failed = ModelCallFailed(error=error.to_status(), usage=usage_in(error))
            add_usage(run_usage, failed.usage)
            failed.run_usage.CopyFrom(run_usage)
            self._journal.set_usage(run_usage)
            return RunEvent(turn=call.turn, model_call_failed=failed)
        _bound(generation)
        if not generation.HasField("elapsed"):
            generation.elapsed.FromNanoseconds(int((time.monotonic() - started_s) * 1e9))
        usage = usage_of(generation)
        add_usage(run_usage, usage)
        self._journal.set_usage(run_usage)
        replied = ModelReplied(
            text=generation.text,
            reasoning=generation.reasoning,
            finish_reason=generation.finish_reason,
            usage=usage,
            model=generation.model,
            elapsed=generation.elapsed,
            cells=len((await parse_reply_aside(generation.text)).cells),
            run_usage=run_usage,
        )
        return RunEvent(turn=call.turn, model_replied=replied)

    async def _generated(self, call: ModelCall) -> Generation:
        """Return the reply. Where the gateway knows the request id of something else, as a version
        with other prompts asked it and died before the reply was stored, it is asked anew."""
        try:
            return await self._model.generate(call)
        except ReceivedError as error:
            if error.reason != ErrorReason.ERROR_REASON_REQUEST_ID_REUSED:
                raise
        digest = hashlib.blake2b(digest_size=8)
        for message in call.messages:
            digest.update(message.SerializeToString(deterministic=True))
        request_id = f"{call.request_id}/{digest.hexdigest()}"
        return await self._model.generate(dataclasses.replace(call, request_id=request_id))

    def _count(self, usage: Usage) -> None:
        self._budget.add(usage)
        self._journal.set_usage(self._budget.usage)

    def _limit_in(self, error: ReceivedError) -> LimitReachedError | None:
        """Return the limit of the run that a failed call tells of."""
        budget = self._budget
        limit = limit_in(error)
        if limit:
            return budget.reached(limit)
        is_late = error.code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
        if is_late and budget.is_work_over:
            return budget.reached("time_max")
        return None

    def _window_exceeded(self) -> LimitReachedError:
        return LimitReachedError(
            "context_tokens_max",
            value=self._room.window_tokens,
            spent=self._history.size_bytes // _BYTES_PER_TOKEN,
        )


def _is_in_ledger(event: RunEvent) -> bool:
    """Whether the gateway gives the same again, under the same request id: it has written a reply
    down before we hear of it, and forgets failures."""
    return event.HasField("model_replied")


def _bound(generation: Generation) -> None:
    """Cut what no model writes for a turn, but a broken one might."""
    if len(generation.text) > _REPLY_CHARACTERS_MAX:
        generation.text = generation.text[:_REPLY_CHARACTERS_MAX]
        generation.finish_reason = Generation.FINISH_REASON_LENGTH
    generation.reasoning = generation.reasoning[:_REPLY_CHARACTERS_MAX]

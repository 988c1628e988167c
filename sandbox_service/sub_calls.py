"""Sub-calls of executions: numbered, limited, and carried to the gateway through a port.

The guest's request comes from a worker and is bounded there and by its frame's types; the run
token is added here and never reaches a worker.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fathom.gateway.v1.generation_pb2 import Generation

from common.errors import ServiceError, UnauthenticatedError
from sandbox_service import frames
from sandbox_service.errors import SubCallLimitError
from sandbox_service.outcomes import fitted, limit_among, refusal
from sandbox_service.run_pass import RunPass

_PROMPT_HEAD_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class SubCall:
    """One prompt on its way to the gateway."""

    number: int
    """Unique in the session, from 1."""
    request_id: str
    """Same for the same call of a run that is executed again; empty for none."""
    messages: list[frames.Message]
    """The prompt."""
    tier: str
    """The tier that is asked."""
    output_tokens_max: int | None
    """Tokens to answer with; the gateway's default where None."""
    temperature: float | None
    """The provider's default where None."""
    turn: int
    """Turn of the run, 0 where there is none."""


class SubModels(Protocol):
    """The way to the gateway."""

    def ask(
        self, calls: Sequence[SubCall], run_pass: RunPass
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        """Yield the outcome of each call, once, with its position, in any order."""


@dataclass(frozen=True, kw_only=True)
class SubCallStarted:
    """A sub-call is about to be sent."""

    number: int
    """Unique in the session, from 1."""
    batch: int
    """Shared by the calls of a batch; 0 for a single call."""
    tier: str
    """The tier that is asked."""
    prompt_characters: int
    """Size of the prompt."""
    prompt_head: str
    """The prompt's first 500 characters."""


@dataclass(frozen=True, kw_only=True)
class SubCallFinished:
    """A sub-call is over."""

    number: int
    """The SubCallStarted's."""
    outcome: Generation | ServiceError
    """The answer, or why there is none."""
    elapsed_s: float
    """From the guest's request to the answer."""


SubCallEvent = SubCallStarted | SubCallFinished


@dataclass
class SubCallMeter:
    """Counts the sub-calls of a session against its limit."""

    sub_calls_max: int
    """Sub-calls that the session may make."""
    made: int = 0
    """Sub-calls made so far."""
    batches: int = 0
    """Batches made so far."""
    sub_calls_of_children: int = 0
    """Sub-calls that child runs have made, with all below them."""

    @property
    def left(self) -> int:
        """Sub-calls that may still be made."""
        return max(self.sub_calls_max - self.made - self.sub_calls_of_children, 0)


@dataclass
class SubCallRound:
    """The sub-calls of one request of the guest, from their start to their outcomes."""

    question: frames.Question
    """What the guest asked."""
    meter: SubCallMeter
    """The session's."""
    sub_models: SubModels
    """The way to the gateway."""
    run_pass: RunPass
    """Empty where the session has none: then every call fails."""
    default_tier: str
    """Asked where the code names no tier."""
    call_prefix: str
    """Prefix of request ids; empty for none."""
    turn: int
    """Turn of the run."""
    sequence: int
    """Sub-calls that this execution made before."""
    failures: Mapping[int, ServiceError] = field(default_factory=dict)
    """Sub-calls that are known to fail and are not made, by number."""
    outcomes: list[Generation | ServiceError] = field(default_factory=list)
    """In the order of the prompts, complete once `events` has ended."""

    async def events(self) -> AsyncIterator[SubCallEvent]:
        """Make the calls and tell of them."""
        started = time.monotonic()
        calls = self._numbered()
        batch = self._batch_number()
        for call in calls:
            yield _started(call, batch)
        pending: dict[int, Generation | ServiceError] = {}
        async for position, outcome in self._asked(calls):
            pending[position] = outcome
            yield SubCallFinished(
                number=calls[position].number,
                outcome=outcome,
                elapsed_s=time.monotonic() - started,
            )
        refused = SubCallLimitError(self.meter.sub_calls_max)
        prompts = range(len(self.question.prompts))
        self.outcomes = [pending.get(position, refused) for position in prompts]

    def answers(self) -> list[frames.Outcome]:
        """Return the outcomes as the guest gets them, as many as fit one frame."""
        # One error may be that of thousands.
        known: dict[int, frames.Answer | frames.Refusal] = {}
        return fitted(
            known.get(id(outcome)) or known.setdefault(id(outcome), _answer(outcome))
            for outcome in self.outcomes
        )

    @property
    def limit_reached(self) -> ServiceError | None:
        """The first outcome that says that a limit of the run is used up."""
        return limit_among(self.outcomes)

    @property
    def _room(self) -> int:
        """Calls that the session may still make; the others are refused, and never begin."""
        return self.meter.left

    def _numbered(self) -> list[SubCall]:
        """Return the calls that are made."""
        question, calls = self.question, []
        for i, messages in enumerate(question.prompts[: self._room]):
            request_id = f"{self.call_prefix}/{self.sequence + i + 1}" if self.call_prefix else ""
            calls.append(
                SubCall(
                    number=self.meter.made + i + 1,
                    request_id=request_id,
                    messages=messages,
                    tier=question.tier or self.default_tier,
                    output_tokens_max=question.output_tokens_max,
                    temperature=question.temperature,
                    turn=self.turn,
                )
            )
        return calls

    def _batch_number(self) -> int:
        if not self.question.is_batch:
            return 0
        self.meter.batches += 1
        return self.meter.batches

    async def _asked(
        self, calls: Sequence[SubCall]
    ) -> AsyncIterator[tuple[int, Generation | ServiceError]]:
        self.meter.made += len(calls)
        if not self.run_pass.token:
            error = UnauthenticatedError("missing", "the session has no run token")
            for position in range(len(calls)):
                yield position, error
            return
        made = [i for i, call in enumerate(calls) if call.number not in self.failures]
        for position in set(range(len(calls))).difference(made):
            yield position, self.failures[calls[position].number]
        if made:
            asked = self.sub_models.ask([calls[i] for i in made], self.run_pass)
            async for position, outcome in asked:
                yield made[position], outcome


def _started(call: SubCall, batch: int) -> SubCallStarted:
    head, characters = "", 0
    for message in call.messages:
        characters += len(message.text)
        if len(head) < _PROMPT_HEAD_CHARACTERS:
            head += message.text[: _PROMPT_HEAD_CHARACTERS - len(head)]
    return SubCallStarted(
        number=call.number,
        batch=batch,
        tier=call.tier,
        prompt_characters=characters,
        prompt_head=head,
    )


def _answer(outcome: Generation | ServiceError) -> frames.Answer | frames.Refusal:
    if isinstance(outcome, ServiceError):
        return refusal(outcome)
    return frames.Answer(text=outcome.text)

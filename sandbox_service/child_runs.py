"""Child runs that a cell asks for: numbered, and carried to the orchestrator through a port.

The guest's request comes from a worker and is bounded there and by its frame's types; the run
token is added here. What a child may have is the orchestrator's to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import ReceivedError, ServiceError, UnauthenticatedError
from sandbox_service import frames
from sandbox_service.errors import ChildRunsUnavailableError
from sandbox_service.outcomes import fitted, limit_among, refusal
from sandbox_service.run_pass import RunPass
from sandbox_service.sub_calls import SubCallMeter

_CONCURRENT_MAX = 32
"""Calls of one batch that are under way at a time, those that wait for others to end included."""
_ENDED = frozenset({Run.STATE_ANSWERED, Run.STATE_PARTIAL, Run.STATE_FAILED, Run.STATE_CANCELLED})


@dataclass(frozen=True, kw_only=True)
class ChildOrder:
    """One child run on its way to the orchestrator."""

    request_id: str
    """Same for the same call of a run that is executed again."""
    child: frames.ChildRun
    """What the cell asks for."""
    siblings: int
    """Calls of its batch that have not been begun, this one included."""
    sub_calls_left: int
    """Sub-calls that the session may still make."""


class ChildRuns(Protocol):
    """The way to the orchestrator."""

    def run(self, order: ChildOrder, run_pass: RunPass) -> AsyncIterator[Run]:
        """Yield how the child stands, as often as that changes, at last in a terminal state.

        Raises ServiceError where there is no such child, or its end cannot be learnt.
        """


@dataclass(frozen=True, kw_only=True)
class ChildRunChanged:
    """How a child run stands."""

    number: int
    """Position among the child runs of the execution, from 1."""
    batch: int
    """Shared by the children of a batch; 0 for a single one."""
    run: Run
    """The child."""


@dataclass(frozen=True, kw_only=True)
class ChildRunFinished:
    """A child run is over."""

    number: int
    """Position among the child runs of the execution, from 1."""
    batch: int
    """Shared by the children of a batch; 0 for a single one."""
    outcome: Run | ServiceError
    """The child in a terminal state, or why there is none."""
    elapsed_s: float
    """From the guest's request to the end."""


ChildRunEvent = ChildRunChanged | ChildRunFinished


@dataclass
class ChildRunRound:
    """The child runs of one request of the guest, from their start to their outcomes."""

    question: frames.ChildQuestion
    """What the guest asked."""
    meter: SubCallMeter
    """The session's."""
    child_runs: ChildRuns | None
    """The way to the orchestrator; None where there is none: then every call fails."""
    run_pass: RunPass
    """Empty where the session has none: then every call fails."""
    call_prefix: str
    """Prefix of request ids; empty for none: then every call fails."""
    sequence: int
    """Child runs that this execution began before."""
    outcomes: list[Run | ServiceError] = field(default_factory=list)
    """In the order of the question, complete once `events` has ended."""

    async def events(self) -> AsyncIterator[ChildRunEvent]:
        """Start the children and tell of them until all have ended."""
        first = self.sequence + 1
        batch = 0
        if self.question.is_batch:
            self.meter.batches += 1
            batch = self.meter.batches
        told: asyncio.Queue[ChildRunEvent] = asyncio.Queue()
        pending: dict[int, Run | ServiceError] = {}
        room = asyncio.Semaphore(_CONCURRENT_MAX)
        turn = asyncio.Event()
        turn.set()
        async with asyncio.TaskGroup() as tasks:
            for position in range(len(self.question.runs)):
                next_turn = asyncio.Event()
                following = self._follow(
                    position, first + position, batch, room, told, turn, next_turn
                )
                tasks.create_task(following)
                turn = next_turn
            while len(pending) < len(self.question.runs):
                event = await told.get()
                if isinstance(event, ChildRunFinished):
                    pending[event.number - first] = event.outcome
                    if isinstance(event.outcome, Run):
                        self.meter.sub_calls_of_children += event.outcome.sub_calls
                yield event
        self.outcomes = [pending[position] for position in range(len(self.question.runs))]

    def answers(self) -> list[frames.Outcome]:
        """Return the outcomes as the guest gets them, as many as fit one frame."""
        return fitted(map(_answer, self.outcomes))

    @property
    def limit_reached(self) -> ServiceError | None:
        """The first outcome that says that a limit of the run is used up."""
        return limit_among(self.outcomes)

    async def _follow(
        self,
        position: int,
        number: int,
        batch: int,
        room: asyncio.Semaphore,
        told: asyncio.Queue[ChildRunEvent],
        turn: asyncio.Event,
        next_turn: asyncio.Event,
    ) -> None:
        started = time.monotonic()
        async with room:  # first come, first served: in the order of the question
            outcome: Run | ServiceError = ServiceError("the orchestrator told no end of the child")
            # One begins after the other: each gets its part of what those before it have left.
            await turn.wait()
            try:
                async for run in self._states(position):
                    next_turn.set()
                    if run.state in _ENDED:
                        outcome = run
                    else:
                        told.put_nowait(ChildRunChanged(number=number, batch=batch, run=run))
            except ServiceError as error:
                outcome = error
            next_turn.set()
        told.put_nowait(
            ChildRunFinished(
                number=number,
                batch=batch,
                outcome=outcome,
                elapsed_s=time.monotonic() - started,
            )
        )

    def _states(self, position: int) -> AsyncIterator[Run]:
        if self.child_runs is None:
            raise ChildRunsUnavailableError("this service is not configured for child runs")
        if not self.run_pass.token:
            raise UnauthenticatedError("missing", "the session has no run token")
        if not self.call_prefix:
            raise ChildRunsUnavailableError("the execution has no call_prefix to name them by")
        order = ChildOrder(
            request_id=f"{self.call_prefix}/c{self.sequence + position + 1}",
            child=self.question.runs[position],
            siblings=len(self.question.runs) - position,
            sub_calls_left=self.meter.left,
        )
        return self.child_runs.run(order, self.run_pass)


def _answer(outcome: Run | ServiceError) -> frames.Outcome:
    if isinstance(outcome, ServiceError):
        return refusal(outcome)
    if outcome.HasField("answer"):
        return frames.ChildAnswer(
            text=outcome.answer.text,
            is_json=outcome.answer.is_json,
            run=outcome.name,
            limit=outcome.answer.limit_reached,
        )
    cause = ReceivedError(outcome.error)
    return frames.Refusal(
        reason="CHILD_RUN_FAILED",
        message=f"the child run gave no answer: {cause.message}"[:2_000],
        run=outcome.name,
    )

"""Host tools that a cell calls: numbered, and carried to the orchestrator through a port.

The guest's request comes from a worker and is bounded there and by its frame's types; the run
token is added here. Which tools there are is the orchestrator's to know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import ServiceError, UnauthenticatedError
from sandbox_service import frames
from sandbox_service.errors import HostToolsUnavailableError
from sandbox_service.outcomes import fitted, refusal

_CONCURRENT_MAX = 8
"""Calls of one batch that are under way at a time."""
_CALLS_MAX = 10_000
"""Calls of one execution; of further ones nobody hears."""


@dataclass(frozen=True, kw_only=True)
class HostToolOrder:
    """One call on its way to the orchestrator."""

    request_id: str
    """Same for the same call of a run that is executed again."""
    tool: str
    """Its name, as the cell gave it."""
    arguments_json: str
    """What the cell gave as its arguments."""


class HostTools(Protocol):
    """The way to the orchestrator."""

    async def call_tool(self, order: HostToolOrder, run_token: str) -> str:
        """Return the result as JSON text; raises ServiceError where there is none."""


@dataclass(frozen=True, kw_only=True)
class HostToolCalled:
    """A call is over."""

    number: int
    """Position among the host tool calls of the execution, from 1."""
    call: frames.HostToolCall
    """What was asked."""
    outcome: str | ServiceError
    """The result as JSON text, or why there is none."""
    elapsed_s: float
    """From the guest's request to the end."""


@dataclass
class HostToolRound:
    """The calls of one request of the guest."""

    question: frames.HostToolQuestion
    """What the guest asked."""
    host_tools: HostTools | None
    """The way to the orchestrator; None where there is none: then every call fails."""
    run_token: str
    """Empty where the session has none: then every call fails."""
    call_prefix: str
    """Prefix of request ids; empty for none: then every call fails."""
    sequence: int
    """Calls that this execution began before."""
    limit_reached: ServiceError | None = None
    """No call of a host tool ends the cell's run."""
    outcomes: list[str | ServiceError] = field(default_factory=list)
    """In the order of the question, complete once `events` has ended."""

    async def events(self) -> AsyncIterator[HostToolCalled]:
        """Make the calls and tell of the end of each."""
        calls = self.question.calls
        told: asyncio.Queue[HostToolCalled] = asyncio.Queue()
        ended: dict[int, str | ServiceError] = {}
        if self.sequence + len(calls) > _CALLS_MAX:
            why = f"an execution makes at most {_CALLS_MAX:,} calls"
            self.outcomes = [HostToolsUnavailableError(why)] * len(calls)
            return
        room = asyncio.Semaphore(_CONCURRENT_MAX)
        async with asyncio.TaskGroup() as tasks:
            for position in range(len(calls)):
                tasks.create_task(self._call(position, room, told))
            while len(ended) < len(calls):
                event = await told.get()
                ended[event.number] = event.outcome
                yield event
        self.outcomes = [ended[self.sequence + 1 + position] for position in range(len(calls))]

    def answers(self) -> list[frames.Outcome]:
        """Return the outcomes as the guest gets them, as many as fit one frame."""
        return fitted(map(_answer, self.outcomes))

    async def _call(
        self, position: int, room: asyncio.Semaphore, told: asyncio.Queue[HostToolCalled]
    ) -> None:
        started = time.monotonic()
        number, call = self.sequence + position + 1, self.question.calls[position]
        outcome: str | ServiceError
        async with room:
            try:
                outcome = await self._outcome(number, call)
            except ServiceError as error:
                outcome = error
        elapsed_s = time.monotonic() - started
        told.put_nowait(
            HostToolCalled(number=number, call=call, outcome=outcome, elapsed_s=elapsed_s)
        )

    async def _outcome(self, number: int, call: frames.HostToolCall) -> str:
        if self.host_tools is None:
            raise HostToolsUnavailableError("this service is not configured for them")
        if not self.run_token:
            raise UnauthenticatedError("missing", "the session has no run token")
        if not self.call_prefix:
            raise HostToolsUnavailableError("the execution has no call_prefix to name calls by")
        order = HostToolOrder(
            request_id=f"{self.call_prefix}/t{number}",
            tool=call.name,
            arguments_json=call.arguments,
        )
        return await self.host_tools.call_tool(order, self.run_token)


def _answer(outcome: str | ServiceError) -> frames.Outcome:
    if isinstance(outcome, ServiceError):
        return refusal(outcome)
    return frames.Answer(outcome)

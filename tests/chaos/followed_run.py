"""One run as its client lives through it: created once, and watched to its end by a watcher that
comes back after whatever it has seen last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import orchestrator_service_pb2_grpc as rpc
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Citation, Run

from common.errors import received
from orchestrator.runs.log.record import ends_run
from tests.chaos.answers import Outcome, what_is_wrong
from tests.chaos.marks import Mark
from tests.chaos.scripts import script_of

_WATCH_TIMEOUT_S = (3.0, 30.0)
"""Watchers hang up by themselves too."""
_PAUSE_S = 0.2
_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)
"""What a client meets where a service is killed; it asks again."""
_CITED = (Citation.CHECK_EXACT, Citation.CHECK_EXACT, Citation.CHECK_NOT_FOUND)
Answer = TypeVar("Answer")


@dataclasses.dataclass
class FollowedRun:
    """One run, and what was seen of it."""

    mark: Mark
    """Which it is."""
    before: FollowedRun | None = None
    """The run that it goes on from."""
    name: str = ""
    """Its name; empty until it is created."""
    events: list[RunEvent] = dataclasses.field(default_factory=list)
    """As the watcher got them."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """What may never be seen."""
    returns: int = 0
    """How often its client had to call again."""

    @property
    def ended(self) -> Run:
        """The run as its last event has it; unset before its end."""
        if not self.events or not ends_run(self.events[-1]):
            return Run()
        return self.events[-1].run_changed

    @property
    def is_cancelled(self) -> bool:
        """Whether its client calls it off."""
        return self.mark.kind == "cancelled"

    @property
    def wrong(self) -> str:
        """What is wrong with how it ended; empty where it ended as an undisturbed run."""
        state = Run.STATE_CANCELLED if self.is_cancelled else Run.STATE_ANSWERED
        if self.ended.state != state:
            words = f"{Run.State.Name(self.ended.state)}: {self.ended.error.message}"
            seen = f"after {len(self.events)} events and {self.returns} returns"
            return f"{self.name} of {self.mark} stands at {words} {seen}"
        wrong = "" if self.is_cancelled else self._wrong_answer() or self._wrong_counts()
        return f"{self.name} of {self.mark}: {wrong}" if wrong else ""

    def _wrong_answer(self) -> str:
        before = self.before.ended.answer.text if self.before is not None else ""
        outcome = Outcome(mark=self.mark, printed=self._printed(), before=_value(before))
        wrong = what_is_wrong(outcome, self.ended.answer.text)
        checks = tuple(citation.check for citation in self.ended.answer.citations)
        if not wrong and self.mark.kind == "cited" and checks != _CITED:
            wrong = f"cites {self.ended.answer.citations}"
        return wrong

    def _wrong_counts(self) -> str:
        script = script_of(self.mark)
        right = {
            "sub_call_started": script.sub_calls,
            "sub_call_finished": script.sub_calls,
            "host_tool_called": script.tool_calls and script.tool_calls + 1,
        }
        cases = [event.WhichOneof("event") for event in self.events]
        given = {case: cases.count(case) for case in right}  # type: ignore[arg-type]
        return "" if given == right else f"told of {given} in place of {right}"

    def _printed(self) -> dict[int, Any]:
        return {
            event.turn: _value(event.cell_finished.output_shown)
            for event in self.events
            if event.HasField("cell_finished")
        }

    async def create(self, call: Callable[[], Awaitable[Run]]) -> None:
        """Have it created by a call that can be made again and again."""
        self.name = (await self.persist(call)).name

    async def follow(
        self,
        stub: rpc.OrchestratorServiceAsyncStub,
        chance: random.Random,
        until: Callable[[RunEvent], bool] = ends_run,
    ) -> None:
        """Watch it up to an event, or to its end."""
        while not (self.ended.name or any(map(until, self.events[-1:]))):
            await self.persist(lambda: self._watch(stub, until, chance.uniform(*_WATCH_TIMEOUT_S)))

    async def persist(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Make a call until it is answered; note errors that no client should get."""
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                self.returns += 1
                if error.code() not in _AWAY:
                    self.faults.append(f"{self.name or self.mark}: {received(error).message}")
            await asyncio.sleep(_PAUSE_S)

    async def _watch(
        self,
        stub: rpc.OrchestratorServiceAsyncStub,
        until: Callable[[RunEvent], bool],
        timeout_s: float,
    ) -> None:
        after = self.events[-1].sequence if self.events else 0
        request = pb.WatchRunRequest(name=self.name, after_sequence=after)
        call = stub.WatchRun(request, timeout=timeout_s)
        try:
            async for response in call:
                if response.event.sequence != after + 1:
                    self.faults.append(f"{self.name}: {response.event.sequence} came after {after}")
                after = response.event.sequence
                self.events.append(response.event)
                if until(response.event):
                    return
        finally:
            call.cancel()


def _value(text: str) -> Any:
    """Return the value that a text is as JSON; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None

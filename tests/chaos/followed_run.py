"""One run as its client lives through it: created once, and watched to its end by a watcher that
comes back after whatever it has seen last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random

import grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import orchestrator_service_pb2_grpc as rpc
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.errors import received
from orchestrator.runs.log.record import ends_run
from tests.chaos import workload

COST_USD_NANOS_MAX = 2_000_000_000
_TIME_S = 3_600
_CREATE_TIMEOUT_S = 10.0
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


@dataclasses.dataclass
class FollowedRun:
    """One run, and what was seen of it."""

    number: int
    """Which of the workload's."""
    context: str
    """What it is about."""
    name: str = ""
    """Its name; empty until it is created."""
    events: list[RunEvent] = dataclasses.field(default_factory=list)
    """As the watcher got them."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """What may never be seen."""
    returns: int = 0
    """How often the watcher came back."""

    @property
    def ended(self) -> Run:
        """The run as its last event has it; unset before its end."""
        if not self.events or not ends_run(self.events[-1]):
            return Run()
        return self.events[-1].run_changed

    @property
    def wrong(self) -> str:
        """What is wrong with how it ended; empty where it has the answer of an undisturbed run."""
        if self.ended.state != Run.STATE_ANSWERED:
            error = self.ended.error.message
            return f"{self.name} stands at {Run.State.Name(self.ended.state)}: {error}"
        printed = [
            event.cell_finished.output_shown
            for event in self.events
            if event.HasField("cell_finished") and event.turn == 1
        ]
        return workload.wrong(self.number, self.ended.answer.text, "".join(printed))

    async def live(self, channel: grpc.aio.Channel, chance: random.Random) -> None:
        """Create it and follow it to its end, however often that takes a new call."""
        stub: rpc.OrchestratorServiceAsyncStub = rpc.OrchestratorServiceStub(channel)
        limits = Limits(depth_max=2, cost_usd_nanos_max=COST_USD_NANOS_MAX)
        limits.time_max.FromSeconds(_TIME_S)
        spec = RunSpec(question=workload.question(self.number), context=self.context, limits=limits)
        request = pb.CreateRunRequest(spec=spec, request_id=f"chaos {self.number}")
        while not self.name:
            try:
                response = await stub.CreateRun(request, timeout=_CREATE_TIMEOUT_S)
                self.name = response.run.name
            except grpc.aio.AioRpcError as error:
                await self._take(error)
        while not self.ended.name:
            try:
                await self._watch(stub, chance.uniform(*_WATCH_TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                await self._take(error)

    async def _watch(self, stub: rpc.OrchestratorServiceAsyncStub, timeout_s: float) -> None:
        after = self.events[-1].sequence if self.events else 0
        request = pb.WatchRunRequest(name=self.name, after_sequence=after)
        async for response in stub.WatchRun(request, timeout=timeout_s):
            if response.event.sequence != after + 1:
                self.faults.append(f"{self.name}: {response.event.sequence} came after {after}")
            after = response.event.sequence
            self.events.append(response.event)

    async def _take(self, error: grpc.aio.AioRpcError) -> None:
        """Note an error that no client should get; wait, so that the call is made again."""
        self.returns += 1
        if error.code() not in _AWAY:
            self.faults.append(f"{self.name or self.number}: {received(error).message}")
        await asyncio.sleep(_PAUSE_S)

"""An orchestrator that keeps what it is sent and plays a written ending; no model, no sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fathom.gateway.v1 import generation_pb2
from fathom.orchestrator.v1 import (
    context_pb2,
    context_service_pb2,
    context_service_pb2_grpc,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    run_event_pb2,
    run_pb2,
)

from common.errors import DrainingError, NotFoundError, ServiceError
from common.server import Server

Ending = Callable[[run_pb2.Run], None]
STARTED_S = 1_700_000_000


def answered(text: str) -> Ending:
    """End a run with an answer."""

    def end(run: run_pb2.Run) -> None:
        run.state = run_pb2.Run.STATE_ANSWERED
        run.answer.text = text
        run.answer.source = run_pb2.Answer.SOURCE_CELL

    return end


def partial(text: str, limit: str) -> Ending:
    """End a run with a partial answer at a limit."""

    def end(run: run_pb2.Run) -> None:
        run.state = run_pb2.Run.STATE_PARTIAL
        run.answer.text = text
        run.answer.limit_reached = limit

    return end


def failed(error: ServiceError) -> Ending:
    """End a run with an error."""

    def end(run: run_pb2.Run) -> None:
        run.state = run_pb2.Run.STATE_FAILED
        run.error.CopyFrom(error.to_status())

    return end


def cancelled(error: ServiceError) -> Ending:
    """End a run as one that was cancelled."""

    def end(run: run_pb2.Run) -> None:
        failed(error)(run)
        run.state = run_pb2.Run.STATE_CANCELLED
        run.found_so_far = "the first half"

    return end


# Typed as anything, because the methods that are not played stay the generated ones.
_Runs: Any = orchestrator_service_pb2_grpc.OrchestratorServiceServicer
_Contexts: Any = context_service_pb2_grpc.ContextServiceServicer


class FakeOrchestrator(_Runs, _Contexts):  # type: ignore[misc]
    """Both services of the orchestrator; a run's events are there as soon as it is created."""

    def __init__(self, ending: Ending, *, ending_when_cancelled: Ending | None = None) -> None:
        """Play `ending`; with `ending_when_cancelled` a run goes on until it is cancelled."""
        self.ending = ending
        self.ending_when_cancelled = ending_when_cancelled
        self.create_error: ServiceError | None = None
        self.cut_watches_after: list[int] = []
        """For each of the next watches, the events after which it breaks."""
        self.started: list[context_service_pb2.UploadStart] = []
        self.documents: list[dict[str, bytes]] = []
        self.estimate_requests: list[orchestrator_service_pb2.EstimateRunRequest] = []
        self.create_requests: list[orchestrator_service_pb2.CreateRunRequest] = []
        self.watched_after: list[int] = []
        self.runs: dict[str, run_pb2.Run] = {}
        self.events: dict[str, list[run_event_pb2.RunEvent]] = {}
        self.watching = asyncio.Event()
        """Set once a watcher has seen all there is of a run that goes on."""
        self.cancel_asked = asyncio.Event()
        """Set once a cancellation was asked for."""
        self.is_deaf = False
        """True for a service that does nothing about a cancellation."""
        self._changed = asyncio.Condition()

    def register(self, server: Server) -> None:
        """Add both services to a server."""
        orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server.grpc)
        context_service_pb2_grpc.add_ContextServiceServicer_to_server(self, server.grpc)

    async def EstimateRun(
        self, request: orchestrator_service_pb2.EstimateRunRequest, context: Any
    ) -> orchestrator_service_pb2.EstimateRunResponse:
        """Foretell a call a byte."""
        self.estimate_requests.append(request)
        size = request.context_bytes
        estimate = orchestrator_service_pb2.EstimateRunResponse(
            calls=orchestrator_service_pb2.Range(low=1, high=size),
            tokens=orchestrator_service_pb2.Range(low=100, high=2_000),
            cost_usd_nanos=orchestrator_service_pb2.Range(low=10_000_000, high=2_000_000_000),
            runs_considered=3,
        )
        estimate.time_low.FromSeconds(2)
        estimate.time_high.FromSeconds(90)
        return estimate

    async def UploadContext(
        self, requests: AsyncIterator[context_service_pb2.UploadContextRequest], context: Any
    ) -> context_service_pb2.UploadContextResponse:
        """Keep the documents; one text is kept under the empty name."""
        documents: dict[str, bytes] = {}
        name, offset_bytes = "", 0
        async for request in requests:
            match request.WhichOneof("message"):
                case "start":
                    self.started.append(request.start)
                case "document":
                    name = request.document.name
                    documents[name] = b""
                case "chunk":
                    assert request.chunk.offset_bytes == offset_bytes
                    offset_bytes += len(request.chunk.data)
                    documents[name] = documents.get(name, b"") + request.chunk.data
        self.documents.append(documents)
        stored = context_pb2.Context(name="contexts/c1", size_bytes=offset_bytes)
        return context_service_pb2.UploadContextResponse(context=stored)

    async def CreateRun(
        self, request: orchestrator_service_pb2.CreateRunRequest, context: Any
    ) -> orchestrator_service_pb2.CreateRunResponse:
        """Store a run with all its events."""
        self.create_requests.append(request)
        if self.create_error is not None:
            raise self.create_error
        run = run_pb2.Run(name=f"runs/r{len(self.runs) + 1}", spec=request.spec)
        run.state = run_pb2.Run.STATE_QUEUED
        run.create_time.FromSeconds(STARTED_S)
        self.runs[run.name] = run
        self.events[run.name] = []
        self._append(run.name, *_work(run))
        if self.ending_when_cancelled is None:
            self._end(run.name, self.ending)
        return orchestrator_service_pb2.CreateRunResponse(run=run)

    async def GetRun(
        self, request: orchestrator_service_pb2.GetRunRequest, context: Any
    ) -> orchestrator_service_pb2.GetRunResponse:
        """Return a run as it stands."""
        return orchestrator_service_pb2.GetRunResponse(run=self._run(request.name))

    async def ListRuns(
        self, request: orchestrator_service_pb2.ListRunsRequest, context: Any
    ) -> orchestrator_service_pb2.ListRunsResponse:
        """Return two runs a page, newest first."""
        newest_first = list(reversed(self.runs.values()))
        first = int(request.page_token or 0)
        last = first + min(request.page_size, 2)
        token = str(last) if last < len(newest_first) else ""
        return orchestrator_service_pb2.ListRunsResponse(
            runs=newest_first[first:last], next_page_token=token
        )

    async def WatchRun(
        self, request: orchestrator_service_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[orchestrator_service_pb2.WatchRunResponse]:
        """Replay, then follow; break where the test wants it."""
        run = self._run(request.name)
        self.watched_after.append(request.after_sequence)
        left = self.cut_watches_after.pop(0) if self.cut_watches_after else -1
        sequence = request.after_sequence
        while True:
            for event in self.events[run.name][sequence:]:
                if left == 0:
                    raise DrainingError
                left -= 1
                sequence = event.sequence
                yield orchestrator_service_pb2.WatchRunResponse(event=event)
            if run.HasField("end_time") and sequence >= run.last_sequence:
                return
            self.watching.set()
            async with self._changed:
                await self._changed.wait()

    async def CancelRun(
        self, request: orchestrator_service_pb2.CancelRunRequest, context: Any
    ) -> orchestrator_service_pb2.CancelRunResponse:
        """End a run that goes on."""
        run = self._run(request.name)
        self.cancel_asked.set()
        ending = None if self.is_deaf else self.ending_when_cancelled
        if ending is not None and not run.HasField("end_time"):
            self._end(run.name, ending)
            async with self._changed:
                self._changed.notify_all()
        return orchestrator_service_pb2.CancelRunResponse(run=run)

    def _run(self, name: str) -> run_pb2.Run:
        if name not in self.runs:
            raise NotFoundError(name)
        return self.runs[name]

    def _end(self, name: str, ending: Ending) -> None:
        run = self.runs[name]
        ending(run)
        run.turns, run.sub_calls = 2, 3
        run.usage.CopyFrom(_usage(2_500, 310_000_000))
        run.end_time.FromSeconds(STARTED_S + 42)
        self._append(name, run_event_pb2.RunEvent(run_changed=run))

    def _append(self, name: str, *events: run_event_pb2.RunEvent) -> None:
        run, kept = self.runs[name], self.events[name]
        for event in events:
            event.sequence = len(kept) + 1
            event.event_time.FromSeconds(STARTED_S + len(kept))
            run.last_sequence = event.sequence
            kept.append(event)
        for event in events:
            if event.HasField("run_changed"):
                event.run_changed.last_sequence = event.sequence


def _usage(tokens: int, cost_usd_nanos: int) -> generation_pb2.Usage:
    return generation_pb2.Usage(input_tokens=tokens, cost_usd_nanos=cost_usd_nanos, calls=1)


def _work(run: run_pb2.Run) -> Iterable[run_event_pb2.RunEvent]:
    """Two turns: a cell with three sub-calls, one of which fails, then a last reply."""
    yield run_event_pb2.RunEvent(run_changed=run)
    run.state = run_pb2.Run.STATE_RUNNING
    run.start_time.FromSeconds(STARTED_S)
    yield run_event_pb2.RunEvent(run_changed=run)
    yield _event(1, turn_started=run_event_pb2.TurnStarted(messages=2, characters=900))
    reply = run_event_pb2.ModelReplied(
        text="I look first.\n```repl\nprint(len(context))\n```",
        finish_reason=generation_pb2.Generation.FINISH_REASON_STOP,
        usage=_usage(1_000, 100_000_000),
        run_usage=_usage(1_000, 100_000_000),
        model="models/root",
        cells=1,
    )
    yield _event(1, model_replied=reply)
    yield _event(1, 1, cell_started=run_event_pb2.CellStarted(code="print(len(context))"))
    for number in (1, 2, 3):
        started = run_event_pb2.SubCallStarted(sub_call=number, batch=1, tier="sub")
        yield _event(1, 1, sub_call_started=started)
    for number in (1, 2, 3):
        finished = run_event_pb2.SubCallFinished(
            sub_call=number, text_head="yes", usage=_usage(500, 70_000_000)
        )
        finished.elapsed.FromMilliseconds(number * 1000)
        if number == 3:
            finished.error.CopyFrom(NotFoundError("models/gone").to_status())
        yield _event(1, 1, sub_call_finished=finished)
    cell = run_event_pb2.CellFinished(
        ending="COMPLETED",
        output_shown="first lines\x1b[2J\n… last lines\n",
        output_characters=48_112,
        output_key="outputs/1",
        sub_calls=3,
    )
    yield _event(1, 1, cell_finished=cell)
    yield _event(2, turn_started=run_event_pb2.TurnStarted(messages=4, characters=2_000))


def _event(turn: int, cell: int = 0, **case: Any) -> run_event_pb2.RunEvent:
    return run_event_pb2.RunEvent(turn=turn, cell=cell, **case)

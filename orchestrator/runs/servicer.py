"""OrchestratorService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import orchestrator_service_pb2_grpc
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import InvalidFieldError, NotBuiltYetError
from common.page_tokens import (
    PAGE_BYTES_MAX,
    make_page_token,
    page_length,
    page_size,
    read_page_token,
)
from common.server import Server
from orchestrator.resource_names import read_name
from orchestrator.runs.admission import Admission
from orchestrator.runs.event_log import EventLog
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_queue import RunQueue
from orchestrator.runs.store import RunStore
from orchestrator.tenants import tenant_of

_NAME = "fathom.orchestrator.v1.OrchestratorService"
CallContext = grpc.aio.ServicerContext[Any, Any]


class OrchestratorServicer(orchestrator_service_pb2_grpc.OrchestratorServiceServicer):
    """The service."""

    def __init__(
        self, runs: RunStore, admission: Admission, log: EventLog, queue: RunQueue
    ) -> None:
        self._runs = runs
        self._admission = admission
        self._log = log
        self._queue = queue

    def register(self, server: Server) -> None:
        """Add it to a server."""
        orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CreateRun(
        self, request: pb.CreateRunRequest, context: CallContext
    ) -> pb.CreateRunResponse:
        """Store and queue a run."""
        run = await self._admission.create(tenant_of(context), request.spec, request.request_id)
        return pb.CreateRunResponse(run=run)

    async def GetRun(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        """Return a run as it is stored."""
        record = await self._find(tenant_of(context), request.name)
        return pb.GetRunResponse(run=record.whole())

    async def ListRuns(
        self, request: pb.ListRunsRequest, context: CallContext
    ) -> pb.ListRunsResponse:
        """List runs, newest first."""
        size = page_size(request.page_size)
        states = sorted(set(request.states))
        if any(state not in Run.State.values() or not state for state in states):
            raise InvalidFieldError("states", "must be states of runs")
        scope = f"runs/{states}"
        before = read_page_token(scope, request.page_token)
        found = await self._runs.newest(
            tenant_of(context),
            states=states,
            before=before,
            count=size + 1,
            bytes_max=PAGE_BYTES_MAX,
        )
        runs = [record.whole() for record in found]
        length = page_length(runs, size)
        token = make_page_token(scope, found[length - 1].run_id) if len(found) > length else ""
        return pb.ListRunsResponse(runs=runs[:length], next_page_token=token)

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: CallContext
    ) -> AsyncIterator[pb.WatchRunResponse]:
        """Stream a run's events to its last one."""
        if request.after_sequence < 0:
            raise InvalidFieldError("after_sequence", "must be at least 0")
        record = await self._find(tenant_of(context), request.name)
        async for event in self._log.follow(record.run_id, after=request.after_sequence):
            yield pb.WatchRunResponse(event=event)

    async def CancelRun(
        self, request: pb.CancelRunRequest, context: CallContext
    ) -> pb.CancelRunResponse:
        """Ask a run to stop."""
        record = await self._find(tenant_of(context), request.name)
        self._queue.cancel(record.run_id)
        return pb.CancelRunResponse(run=record.whole())

    async def ForkRun(
        self, _request: pb.ForkRunRequest, _context: CallContext
    ) -> pb.ForkRunResponse:
        """Refuse: there are no checkpoints."""
        raise NotBuiltYetError("ForkRun", "runs keep no checkpoints")

    async def EstimateRun(
        self, _request: pb.EstimateRunRequest, _context: CallContext
    ) -> pb.EstimateRunResponse:
        """Refuse: there is no record to predict from."""
        raise NotBuiltYetError("EstimateRun", "the server keeps no record to predict from")

    async def _find(self, tenant: str, name: str) -> RunRecord:
        return await self._runs.get(tenant, read_name("name", name, collection="runs"))

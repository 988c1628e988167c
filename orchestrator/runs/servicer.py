"""OrchestratorService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import orchestrator_service_pb2_grpc
from fathom.orchestrator.v1.run_pb2 import Run

from common.errors import InvalidFieldError
from common.page_tokens import (
    PAGE_BYTES_MAX,
    make_page_token,
    page_length,
    page_size,
    read_page_token,
)
from common.server import Server
from orchestrator.bearers import token_of
from orchestrator.operations.audit_log import Deed
from orchestrator.resource_names import read_name
from orchestrator.runs import estimate_messages, watch_messages
from orchestrator.runs.admission import Admission
from orchestrator.runs.children.messages import read_order
from orchestrator.runs.children.run_trees import RunTrees
from orchestrator.runs.estimate import Estimator
from orchestrator.runs.fork import Forks
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.queue import RunQueue
from orchestrator.runs.usage import GroupBy
from orchestrator.tenant_places import CellPlaces
from orchestrator.tenants import caller_of, tenant_of

_NAME = "fathom.orchestrator.v1.OrchestratorService"
CallContext = grpc.aio.ServicerContext[Any, Any]
_GROUPS = {
    pb.GetRunUsageRequest.GROUP_BY_UNSPECIFIED: GroupBy.NOTHING,
    pb.GetRunUsageRequest.GROUP_BY_TURN: GroupBy.TURN,
    pb.GetRunUsageRequest.GROUP_BY_DEPTH: GroupBy.DEPTH,
    pb.GetRunUsageRequest.GROUP_BY_MODEL: GroupBy.MODEL,
    pb.GetRunUsageRequest.GROUP_BY_TIER: GroupBy.TIER,
    pb.GetRunUsageRequest.GROUP_BY_RUN: GroupBy.RUN,
}


class OrchestratorServicer(orchestrator_service_pb2_grpc.OrchestratorServiceServicer):
    """The service."""

    def __init__(
        self,
        runs: RunStore,
        admission: Admission,
        estimator: Estimator,
        log: EventLog,
        queue: RunQueue,
        trees: RunTrees,
        cells: CellPlaces,
    ) -> None:
        self._runs = runs
        self._admission = admission
        self._estimator = estimator
        self._log = log
        self._queue = queue
        self._trees = trees
        self._cells = cells

    def register(self, server: Server) -> None:
        """Add it to a server."""
        orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CreateRun(
        self, request: pb.CreateRunRequest, context: CallContext
    ) -> pb.CreateRunResponse:
        """Store and queue a run."""
        caller = caller_of(context)
        run = await self._admission.create(
            caller.tenant, request.spec, request.request_id, created_by=caller.key
        )
        return pb.CreateRunResponse(run=run)

    async def GetRun(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        """Return a run as it is stored."""
        record = await self._find(tenant_of(context), request.name)
        return pb.GetRunResponse(run=await self._trees.children.shown(record))

    async def ListRuns(
        self, request: pb.ListRunsRequest, context: CallContext
    ) -> pb.ListRunsResponse:
        """List runs, newest first."""
        size = page_size(request.page_size)
        states = sorted(set(request.states))
        if any(state not in Run.State.values() or not state for state in states):
            raise InvalidFieldError("states", "must be states of runs")
        parent_id = ""
        if request.parent:
            parent_id = read_name("parent", request.parent, collection="runs")
        scope = f"runs/{states}/{parent_id}"
        before = read_page_token(scope, request.page_token)
        found = await self._runs.newest(
            tenant_of(context),
            states=states,
            before=before,
            count=size + 1,
            bytes_max=PAGE_BYTES_MAX,
            parent_id=parent_id,
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
        told = self._log.follow_joined(record.run_id, after=request.after_sequence)
        async for events in told:
            for response in watch_messages.responses(events, joined=request.joined):
                yield response

    async def CancelRun(
        self, request: pb.CancelRunRequest, context: CallContext
    ) -> pb.CancelRunResponse:
        """Ask a run to stop."""
        record = await self._find(tenant_of(context), request.name)
        caller = caller_of(context)
        deed = Deed(
            tenant=caller.tenant,
            actor=caller.key,
            action="run.cancel_asked",
            subject=record.head.name,
        )
        await self._queue.cancel(record.run_id, deed)
        return pb.CancelRunResponse(run=record.whole())

    async def RunChild(
        self, request: pb.RunChildRequest, context: CallContext
    ) -> AsyncIterator[pb.RunChildResponse]:
        """Start a child run, or find it, and tell of it to its end."""
        token = token_of(self._trees.tokens, context)
        with self._cells.child_call(token):
            async for run in self._trees.children.run(token, read_order(request)):
                yield pb.RunChildResponse(run=run)

    async def GetRunUsage(
        self, request: pb.GetRunUsageRequest, context: CallContext
    ) -> pb.GetRunUsageResponse:
        """Sum up what the calls of a run and all below it took."""
        if request.group_by not in _GROUPS:
            raise InvalidFieldError("group_by", "must be a value of GroupBy")
        run_id = read_name("name", request.name, collection="runs")
        sums = await self._trees.usage.sums(tenant_of(context), run_id, _GROUPS[request.group_by])
        groups = [pb.UsageGroup(key=key, usage=usage) for key, usage in sums.groups]
        return pb.GetRunUsageResponse(
            groups=groups, total=sums.total, incomplete=sums.is_incomplete
        )

    async def ForkRun(self, request: pb.ForkRunRequest, context: CallContext) -> pb.ForkRunResponse:
        """Store and queue a run that takes over turns of another one."""
        caller = caller_of(context)
        run_id = read_name("name", request.name, collection="runs")
        forks = Forks(self._runs)
        spec = await forks.spec(caller.tenant, run_id, request.changes)
        taken = await forks.taken_over(caller.tenant, run_id, after_turn=request.after_turn)
        run = await self._admission.create(
            caller.tenant, spec, request.request_id, created_by=caller.key, taken=taken
        )
        return pb.ForkRunResponse(run=run)

    async def EstimateRun(
        self, request: pb.EstimateRunRequest, context: CallContext
    ) -> pb.EstimateRunResponse:
        """Predict what a run would take."""
        spec, size = estimate_messages.read_request(request)
        estimate = await self._estimator.estimate(tenant_of(context), spec, size)
        return estimate_messages.response(estimate)

    async def _find(self, tenant: str, name: str) -> RunRecord:
        return await self._runs.get(tenant, read_name("name", name, collection="runs"))

"""The sandbox service as the orchestrator calls it: sessions opened, code run, sessions ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence

import grpc
from fathom.sandbox.v1 import sandbox_service_pb2 as pb
from fathom.sandbox.v1 import sandbox_service_pb2_grpc
from fathom.sandbox.v1.execution_pb2 import ExecutionEvent
from fathom.sandbox.v1.session_pb2 import (
    ContextMount,
    DocumentRange,
    Session,
    TextShape,
)

from common.errors import received
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.runs.ports import (
    CellOrder,
    OpenSession,
    RestoreOrder,
    SessionOrder,
    StoredSession,
)

MESSAGE_BYTES_MAX = 16 << 20
"""A context of many documents is described in one message."""
_SHORT_TIMEOUT_S = 5.0
_CHECKPOINT_TIMEOUT_S = 60.0
_RUN_LABEL = "run"
_PAGE_SESSIONS = 500
_KINDS = {
    ContextKind.TEXT: ContextMount.KIND_TEXT,
    ContextKind.DOCUMENTS: ContextMount.KIND_DOCUMENTS,
    ContextKind.JSON: ContextMount.KIND_JSON,
}


class SandboxClient:
    """Calls of one sandbox service. The channel belongs to the caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = sandbox_service_pb2_grpc.SandboxServiceStub(channel)

    async def open_session(self, order: SessionOrder) -> str:
        """Open a session with the context mounted; raises ReceivedError."""
        request = pb.CreateSessionRequest(
            request_id=order.request_id,
            contexts=[_mount(order.context, order.documents)],
            run_token=order.run_token,
            sub_tier=order.sub_tier,
            labels={_RUN_LABEL: order.run_id},
            profile=order.guest,
        )
        request.limits.execute_time_max.FromNanoseconds(int(order.execute_time_max_s * 1e9))
        request.determinism.clock_time.FromNanoseconds(order.clock_ns)
        request.determinism.seed = order.seed
        request.idle_ttl.FromNanoseconds(int(order.idle_ttl_s * 1e9))
        try:
            response = await self._stub.CreateSession(request, timeout=order.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        return response.session.name

    async def restore_session(self, order: RestoreOrder) -> OpenSession:
        """Make a session from a checkpoint; raises ReceivedError."""
        request = pb.RestoreSessionRequest(
            checkpoint_key=order.checkpoint_key,
            run_token=order.run_token,
            sub_tier=order.sub_tier,
            request_id=order.request_id,
            labels={_RUN_LABEL: order.run_id},
        )
        request.idle_ttl.FromNanoseconds(int(order.idle_ttl_s * 1e9))
        try:
            response = await self._stub.RestoreSession(request, timeout=order.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        return _open_session(response.session)

    async def sessions_of(self, run_id: str) -> Sequence[OpenSession]:
        """List a run's sessions; raises ReceivedError."""
        request = pb.ListSessionsRequest(labels={_RUN_LABEL: run_id})
        return [_open_session(session) async for session in self._listed(request)]

    async def sessions_of_runs(self) -> Mapping[str, str]:
        """Return the run's id of each session that has one, by `sessions/{session}`; raises
        ReceivedError."""
        request = pb.ListSessionsRequest(page_size=_PAGE_SESSIONS)
        return {
            session.name: session.labels[_RUN_LABEL]
            async for session in self._listed(request)
            if _RUN_LABEL in session.labels
        }

    async def checkpoint(self, session: str, owner: str) -> StoredSession:
        """Store a session; raises ReceivedError."""
        try:
            response = await self._stub.CheckpointSession(
                pb.CheckpointSessionRequest(name=session, owner=owner),
                timeout=_CHECKPOINT_TIMEOUT_S,
            )
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        stored = response.checkpoint
        return StoredSession(stored.key, stored.size_bytes, stored.executions)

    async def delete_checkpoints(
        self, owner: str, kept_keys: Collection[str], *, age_min_s: float
    ) -> int:
        """Delete an owner's checkpoints, but for those that are named or younger; return how many
        objects that were. Raises ReceivedError."""
        request = pb.DeleteCheckpointsRequest(owner=owner, kept_keys=kept_keys)
        request.age_min.FromNanoseconds(int(age_min_s * 1e9))
        try:
            response = await self._stub.DeleteCheckpoints(request, timeout=_CHECKPOINT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        return response.objects_deleted

    async def execute(self, order: CellOrder) -> AsyncGenerator[ExecutionEvent, None]:
        """Run code and yield what happens; raises ReceivedError. Leaving early interrupts it."""
        request = pb.ExecuteRequest(
            name=order.session,
            code=order.code,
            run_token=order.run_token,
            call_prefix=order.call_prefix,
            turn=order.turn,
            report_variables=True,
            random_stream=order.random_stream,
            sub_calls_max=order.sub_calls_max,
            failed_sub_calls=[
                pb.FailedSubCall(sequence=sequence, error=error)
                for sequence, error in order.failed_sub_calls.items()
            ],
            joined=True,
            sub_tier=order.sub_tier,
        )
        call = self._stub.Execute(request, timeout=order.timeout_s)
        try:
            async for response in call:
                yield response.event
                for event in response.further:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise received(error) from error
        finally:
            call.cancel()

    async def refresh_run_token(self, session: str, run_token: str) -> None:
        """Replace a session's run token, also while code runs; raises ReceivedError."""
        request = pb.RefreshRunTokenRequest(name=session, run_token=run_token)
        try:
            await self._stub.RefreshRunToken(request, timeout=_SHORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise received(error) from error

    async def interrupt(self, session: str) -> None:
        """Stop the running code; raises ReceivedError."""
        try:
            await self._stub.InterruptExecution(
                pb.InterruptExecutionRequest(name=session), timeout=_SHORT_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise received(error) from error

    async def delete_session(self, session: str) -> None:
        """End a session; raises ReceivedError."""
        request = pb.DeleteSessionRequest(name=session, allow_missing=True)
        try:
            await self._stub.DeleteSession(request, timeout=_SHORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise received(error) from error

    async def _listed(self, request: pb.ListSessionsRequest) -> AsyncIterator[Session]:
        while True:
            try:
                response = await self._stub.ListSessions(request, timeout=_SHORT_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                raise received(error) from error
            for session in response.sessions:
                yield session
            request.page_token = response.next_page_token
            if not request.page_token:
                return


def _open_session(session: Session) -> OpenSession:
    is_idle = session.state in {Session.STATE_IDLE, Session.STATE_EVICTED}
    return OpenSession(session.name, session.executions, is_idle)


def _mount(context: StoredContext, documents: Sequence[StoredDocument]) -> ContextMount:
    return ContextMount(
        variable="context",
        kind=_KINDS[context.kind],
        blob_key=context.blob_key,
        size_bytes=context.size_bytes,
        offset_bytes=context.offset_bytes,
        blob_bytes=context.blob_bytes,
        text_shape=TextShape(
            characters=context.shape.characters, code_point_max=context.shape.code_point_max
        ),
        documents=[
            DocumentRange(
                name=document.name,
                offset_bytes=document.offset_bytes,
                size_bytes=document.size_bytes,
                text_shape=TextShape(
                    characters=document.characters, code_point_max=document.code_point_max
                ),
            )
            for document in documents
        ],
    )

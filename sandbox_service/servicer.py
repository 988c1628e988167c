"""SandboxService over gRPC: wire in, domain call, wire out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1.sandbox_service_pb2_grpc import (
    SandboxServiceServicer,
    add_SandboxServiceServicer_to_server,
)

from common.errors import NotFoundError
from common.page_tokens import make_page_token, page_length, page_size, read_page_number
from common.server import Server
from sandbox_service import requests, responses
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.config import SandboxConfig
from sandbox_service.errors import SessionLostError
from sandbox_service.guest_build import PYTHON_VERSION, engine_version
from sandbox_service.jail.wall import Wall
from sandbox_service.memory_watch import MemoryGauge
from sandbox_service.profiles import PROFILES
from sandbox_service.session_limits import ceiling_limits, default_limits, wire_limits
from sandbox_service.session_table import SessionTable
from sandbox_service.session_telemetry import SessionTelemetry

_NAME = "fathom.sandbox.v1.SandboxService"
Context = grpc.aio.ServicerContext[Any, Any]

_SESSIONS = "sessions"
"""Scope of ListSessions' page tokens."""


class SandboxServicer(SandboxServiceServicer):
    """The service's RPCs; see the contract for what each promises."""

    def __init__(
        self,
        sessions: SessionTable,
        carriers: Carriers,
        config: SandboxConfig,
        audit: AuditTrail,
        gauge: MemoryGauge,
    ) -> None:
        """Serve the sessions of a table, whose cells reach the outside by `carriers`."""
        self._sessions = sessions
        self._carriers = carriers
        self._config = config
        self._audit = audit
        self._gauge = gauge
        self._telemetry = SessionTelemetry(sessions.count_by_state, gauge)

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_SandboxServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CreateSession(
        self, request: wire.CreateSessionRequest, _context: Context
    ) -> wire.CreateSessionResponse:
        """Start a guest with its contexts."""
        options = requests.session_options(request, self._config)
        session = await self._sessions.create(options, requests.request_id(request.request_id))
        return wire.CreateSessionResponse(session=responses.session(session))

    async def Execute(
        self, request: wire.ExecuteRequest, _context: Context
    ) -> AsyncIterator[wire.ExecuteResponse]:
        """Run one piece of code and stream what happens."""
        name = requests.session_name(request.name)
        options = requests.execution_options(request, self._config)
        run_token = requests.run_token(request.run_token)
        session = self._sessions.find(name)
        told = session.execute(
            options, self._carriers, self._sessions.tasks, self._audit, run_token
        )
        with self._telemetry.execution() as observe:
            async with aclosing(told):
                async for events in told:
                    for event in events:
                        observe(event)
                    for response in responses.events(events, joined=request.joined):
                        yield response

    async def InterruptExecution(
        self, request: wire.InterruptExecutionRequest, _context: Context
    ) -> wire.InterruptExecutionResponse:
        """Stop what runs in a session."""
        session = self._sessions.find(requests.session_name(request.name))
        was_running = await session.interrupt()
        return wire.InterruptExecutionResponse(was_running=was_running)

    async def RefreshRunToken(
        self, request: wire.RefreshRunTokenRequest, _context: Context
    ) -> wire.RefreshRunTokenResponse:
        """Replace a session's run token."""
        session = self._sessions.find(requests.session_name(request.name))
        session.refresh_run_token(requests.fresh_run_token(request.run_token))
        return wire.RefreshRunTokenResponse()

    async def ForkSession(
        self, request: wire.ForkSessionRequest, _context: Context
    ) -> wire.ForkSessionResponse:
        """Copy a session."""
        session = await self._sessions.fork(
            requests.session_name(request.name),
            run_token=requests.run_token(request.run_token),
            labels=requests.labels(request.labels),
            request_id=requests.request_id(request.request_id),
        )
        return wire.ForkSessionResponse(session=responses.session(session))

    async def CheckpointSession(
        self, request: wire.CheckpointSessionRequest, _context: Context
    ) -> wire.CheckpointSessionResponse:
        """Store a session's image."""
        owner = requests.checkpoint_owner(request.owner) if request.owner else ""
        name = requests.session_name(request.name)
        checkpoint = await self._sessions.checkpoint(name, owner)
        return wire.CheckpointSessionResponse(checkpoint=responses.checkpoint(checkpoint))

    async def DeleteCheckpoints(
        self, request: wire.DeleteCheckpointsRequest, _context: Context
    ) -> wire.DeleteCheckpointsResponse:
        """Delete what an owner has stored."""
        deleted = await self._sessions.delete_checkpoints(
            requests.checkpoint_owner(request.owner),
            requests.kept_keys(request.kept_keys),
            age_min_s=requests.age_min_s(request),
        )
        return wire.DeleteCheckpointsResponse(objects_deleted=deleted)

    async def RestoreSession(
        self, request: wire.RestoreSessionRequest, _context: Context
    ) -> wire.RestoreSessionResponse:
        """Make a session from a checkpoint."""
        key = requests.checkpoint_key(request.checkpoint_key)
        manifest = await self._sessions.manifest(key)
        options = requests.restored_options(request, manifest, self._config)
        request_id = requests.request_id(request.request_id)
        session = await self._sessions.restore(key, manifest, options, request_id)
        return wire.RestoreSessionResponse(session=responses.session(session))

    async def GetSession(
        self, request: wire.GetSessionRequest, _context: Context
    ) -> wire.GetSessionResponse:
        """Describe one session."""
        session = self._sessions.find(requests.session_name(request.name))
        return wire.GetSessionResponse(session=responses.session(session))

    async def ListSessions(
        self, request: wire.ListSessionsRequest, _context: Context
    ) -> wire.ListSessionsResponse:
        """Describe live sessions, oldest first."""
        size = page_size(request.page_size)
        labels = requests.labels(request.labels)
        scope = f"{_SESSIONS}/{sorted(labels.items())}"
        after = read_page_number(scope, request.page_token)
        sessions = self._sessions.page(after, size + 1, labels)
        described = [responses.session(session) for session in sessions]
        length = page_length(described, size)
        token = ""
        if len(sessions) > length:
            token = make_page_token(scope, str(sessions[length - 1].number))
        return wire.ListSessionsResponse(sessions=described[:length], next_page_token=token)

    async def DeleteSession(
        self, request: wire.DeleteSessionRequest, _context: Context
    ) -> wire.DeleteSessionResponse:
        """End a session."""
        try:
            await self._sessions.delete(requests.session_name(request.name))
        except (NotFoundError, SessionLostError):
            if not request.allow_missing:
                raise
        return wire.DeleteSessionResponse()

    async def GetSandboxInfo(
        self, _request: wire.GetSandboxInfoRequest, _context: Context
    ) -> wire.GetSandboxInfoResponse:
        """Describe the host."""
        walls = [Wall("wasm", True), Wall("process", True), *self._sessions.pool.walls]
        return wire.GetSandboxInfoResponse(
            python_version=PYTHON_VERSION,
            guest_digest=self._sessions.pool.build.digest,
            engine_version=engine_version(),
            default_limits=wire_limits(default_limits(self._config)),
            ceiling_limits=wire_limits(ceiling_limits(self._config)),
            sessions_max=self._sessions.sessions_max,
            sessions=len(self._sessions),
            walls=[responses.wall(wall) for wall in walls],
            profiles=list(PROFILES),
            workers=len(self._sessions.pool.workers),
            memory_bytes=self._gauge.bytes_used,
            memory_bytes_max=self._gauge.bytes_max,
        )

"""The sandbox service over loopback: real workers, the real guest, a fake gateway."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from fathom.gateway.v1 import gateway_service_pb2 as gateway_wire
from fathom.gateway.v1.gateway_service_pb2_grpc import (
    GatewayServiceServicer,
    add_GatewayServiceServicer_to_server,
)
from fathom.gateway.v1.generation_pb2 import Generation, Message
from fathom.sandbox.v1 import execution_pb2, session_pb2
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from common.config import load
from common.errors import ServiceError, received
from common.run_token import RUN_TOKEN_METADATA
from common.server import Server
from sandbox_service.audit import AuditTrail
from sandbox_service.cell_requests import Carriers
from sandbox_service.child_runs import ChildRuns
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.gateway_client import MESSAGE_BYTES_MAX, GatewaySubModels
from sandbox_service.guest_build import GuestBuild
from sandbox_service.host_tools import HostTools
from sandbox_service.memory_watch import MemoryGauge, MemoryWatch
from sandbox_service.objects import FolderObjects
from sandbox_service.pool import WorkerPool
from sandbox_service.prepare import prepare_guest
from sandbox_service.progress import Progress
from sandbox_service.servicer import SandboxServicer
from sandbox_service.session_table import SessionTable
from tests.support.serving import serve

TIMEOUT_S = 100.0
_BUSY_MAX = 20
Result = execution_pb2.ExecutionResult
_GUEST_SETTINGS = (f"{PREFIX}GUEST_CACHE", f"{PREFIX}GUEST_WHEEL")


class FakeGateway(GatewayServiceServicer):
    """Answers each prompt with its own text, unless told otherwise."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.tokens: list[str] = []
        self.errors: dict[str, ServiceError] = {}
        """By prompt."""
        self.answer: Callable[[Sequence[Message]], str] = lambda messages: (
            f"re: {messages[-1].text}"
        )
        """What it answers to a conversation."""
        self.hold = asyncio.Event()
        """Prompts that begin with `hold` wait for it."""
        self.held = asyncio.Event()
        """Set when one waits."""
        self.cancelled = asyncio.Event()
        """Set when a call was given up while it waited."""

    async def Generate(
        self, request: gateway_wire.GenerateRequest, context: Any
    ) -> gateway_wire.GenerateResponse:
        self._note(request, context)
        text = request.prompt.messages[-1].text
        await self._wait(text)
        if text in self.errors:
            raise self.errors[text]
        answer = self.answer(request.prompt.messages)
        return gateway_wire.GenerateResponse(generation=Generation(text=answer))

    async def BatchGenerate(
        self, requests: AsyncIterator[gateway_wire.BatchGenerateRequest], context: Any
    ) -> AsyncIterator[gateway_wire.BatchGenerateResponse]:
        items = [message.item async for message in requests if message.HasField("item")]
        for item in reversed(items):
            self._note(item, context)
            text = item.prompt.messages[-1].text
            await self._wait(text)
            response = gateway_wire.BatchGenerateResponse(index=item.index)
            if text in self.errors:
                response.error.CopyFrom(self.errors[text].to_status())
            else:
                response.generation.text = self.answer(item.prompt.messages)
            yield response

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    async def CountTokens(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def SettleCalls(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def ListModels(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.tokens.append(str(dict(context.invocation_metadata()).get(RUN_TOKEN_METADATA)))

    async def _wait(self, text: str) -> None:
        if text.startswith("hold"):
            self.held.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise


@dataclasses.dataclass
class Ran:
    """What an execution gave."""

    events: list[execution_pb2.ExecutionEvent]

    @property
    def result(self) -> Result:
        return self.events[-1].result

    @property
    def ending(self) -> str:
        return Result.Ending.Name(self.result.ending).removeprefix("ENDING_").lower()

    @property
    def out(self) -> str:
        return self._text(execution_pb2.OutputChunk.STREAM_STDOUT)

    @property
    def err(self) -> str:
        return self._text(execution_pb2.OutputChunk.STREAM_STDERR)

    def kinds(self) -> list[str | None]:
        return [event.WhichOneof("event") for event in self.events]

    def _text(self, stream: int) -> str:
        return "".join(e.output.text for e in self.events if e.output.stream == stream)


class Sandbox:
    """A client of the service under test."""

    def __init__(self, stub: Any, table: SessionTable, gateway: FakeGateway, objects: Path) -> None:
        self.stub = stub
        self.table = table
        self.gateway = gateway
        self.address = ""
        """Where it listens, `host:port`, for other services."""
        self._objects = objects
        self._blobs = 0

    async def create(self, *, run_token: str = "token", **fields: Any) -> str:
        request = wire.CreateSessionRequest(run_token=run_token, **fields)
        response = await self.stub.CreateSession(request, timeout=TIMEOUT_S)
        return str(response.session.name)

    async def run(self, session: str, code: str, **fields: Any) -> Ran:
        return Ran([event async for event in self.stream(session, code, **fields)])

    async def run_in_time(self, session: str, code: str) -> Ran:
        """Run a cell of milliseconds in a session that has little time for each: again, where a
        busy machine took all of it."""
        ran = await self.run(session, code)
        for _ in range(_BUSY_MAX):
            if ran.ending != "timed_out":
                break
            ran = await self.run(session, code)
        return ran

    async def stream(
        self, session: str, code: str, **fields: Any
    ) -> AsyncIterator[execution_pb2.ExecutionEvent]:
        request = wire.ExecuteRequest(name=session, code=code, **fields)
        async for response in self.stub.Execute(request, timeout=TIMEOUT_S):
            yield response.event

    async def session(self, name: str) -> session_pb2.Session:
        request = wire.GetSessionRequest(name=name)
        response = await self.stub.GetSession(request, timeout=TIMEOUT_S)
        found: session_pb2.Session = response.session
        return found

    async def fork(self, session: str, **fields: Any) -> str:
        request = wire.ForkSessionRequest(name=session, **fields)
        response = await self.stub.ForkSession(request, timeout=TIMEOUT_S)
        return str(response.session.name)

    async def checkpoint(self, session: str, owner: str = "") -> wire.Checkpoint:
        request = wire.CheckpointSessionRequest(name=session, owner=owner)
        response = await self.stub.CheckpointSession(request, timeout=TIMEOUT_S)
        checkpoint: wire.Checkpoint = response.checkpoint
        return checkpoint

    async def delete_checkpoints(self, owner: str, *kept_keys: str, **fields: Any) -> int:
        request = wire.DeleteCheckpointsRequest(owner=owner, kept_keys=kept_keys, **fields)
        response = await self.stub.DeleteCheckpoints(request, timeout=TIMEOUT_S)
        deleted: int = response.objects_deleted
        return deleted

    async def restore(self, key: str, **fields: Any) -> str:
        request = wire.RestoreSessionRequest(checkpoint_key=key, **fields)
        response = await self.stub.RestoreSession(request, timeout=TIMEOUT_S)
        return str(response.session.name)

    def store(self, data: bytes) -> str:
        """Put a blob into the object store and return its key."""
        self._blobs += 1
        key = f"contexts/{self._blobs}"
        (self._objects / "contexts").mkdir(exist_ok=True)
        (self._objects / key).write_bytes(data)
        return key

    def text(self, data: bytes, variable: str = "context") -> session_pb2.ContextMount:
        """Store a text and describe it."""
        return session_pb2.ContextMount(
            variable=variable,
            kind=session_pb2.ContextMount.KIND_TEXT,
            blob_key=self.store(data),
            size_bytes=len(data),
            text_shape=shape(data),
        )

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.table.pool.workers]


def shape(data: bytes) -> session_pb2.TextShape:
    """Describe a text as the contract has it."""
    text = data.decode("utf-8", "replace")
    largest = max(map(ord, set(text)), default=0)
    return session_pb2.TextShape(characters=len(text), code_point_max=largest)


def guest() -> GuestBuild:
    """Return the prepared guest, preparing it first where nobody has."""
    environ = {name: os.environ[name] for name in _GUEST_SETTINGS if name in os.environ}
    config = load(SandboxConfig, environ, prefix=PREFIX)
    return prepare_guest(config.guest_cache, config.guest_wheel, Progress(sys.stderr))


@contextlib.asynccontextmanager
async def sandbox(
    build: GuestBuild,
    objects: Path,
    *,
    workers: int = 1,
    child_runs: ChildRuns | None = None,
    host_tools: HostTools | None = None,
    **settings: Any,
) -> AsyncIterator[Sandbox]:
    """Run the service and yield a client of it."""
    config = SandboxConfig(object_store=str(objects), drain_s=1.0, **settings)
    gateway = FakeGateway()
    pool = WorkerPool(
        build,
        workers,
        niceness=config.worker_niceness,
        require_jail=config.require_jail,
        worker_sessions_max=config.worker_sessions_max,
    )

    def add_gateway(server: Any) -> None:
        add_GatewayServiceServicer_to_server(gateway, server.grpc)

    gauge = MemoryGauge(config.memory_bytes_bound)
    # The trail first: sessions end their executions on the way out.
    with AuditTrail(config.audit_log) as audit:
        async with (
            serve(add_gateway, message_bytes_max=MESSAGE_BYTES_MAX) as gateway_channel,
            pool,
            SessionTable(
                pool,
                FolderObjects(objects),
                config.sessions_max,
                lazy_bytes_min=config.lazy_context_bytes_min,
                gauge=gauge,
            ) as table,
            MemoryWatch(table, gauge),
        ):
            sub_models = GatewaySubModels(
                gateway_channel,
                call_timeout_s=config.sub_call_timeout_s,
                concurrency_max=config.sub_call_concurrency_max,
            )
            carriers = Carriers(sub_models=sub_models, child_runs=child_runs, host_tools=host_tools)
            servicer = SandboxServicer(table, carriers, config, audit, gauge)

            servers: list[Server] = []

            def add_sandbox(server: Server) -> None:
                servers.append(server)
                servicer.register(server)

            async with serve(add_sandbox) as channel:
                box = Sandbox(SandboxServiceStub(channel), table, gateway, objects)
                box.address = servers[0].address
                yield box
                gateway.hold.set()


def details(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return code, reason and metadata of a failed call."""
    found = received(error)
    return found.code, found.reason_name.removeprefix("ERROR_REASON_"), found.metadata

"""The real orchestrator over loopback, with a fake gateway and a fake sandbox behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
from fathom.orchestrator.v1 import (
    context_service_pb2 as context_pb,
)
from fathom.orchestrator.v1 import (
    context_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
)
from fathom.orchestrator.v1 import (
    orchestrator_service_pb2 as pb,
)
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_event_pb2 import RunEvent
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.channel import open_channel
from common.config import Secret
from common.server import Server
from orchestrator.assembly import open_orchestrator
from orchestrator.config import OrchestratorConfig
from tests.support.fake_gateway import TOKEN_KEY, FakeGateway, Script
from tests.support.fake_sandbox import FakeSandbox
from tests.support.serving import serve

TIMEOUT_S = 30.0


class Served(Protocol):
    """What can be served."""

    def register(self, server: Server) -> None:
        """Add it to a server."""


@dataclasses.dataclass
class Stack:
    """A running orchestrator and its neighbours."""

    channel: grpc.aio.Channel
    gateway: FakeGateway
    sandbox: Any
    """A FakeSandbox, unless the test brings another one."""
    server: Server
    config: OrchestratorConfig

    @property
    def runs(self) -> orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub:
        """Runs."""
        return orchestrator_service_pb2_grpc.OrchestratorServiceStub(self.channel)

    @property
    def contexts(self) -> context_service_pb2_grpc.ContextServiceAsyncStub:
        """Contexts."""
        return context_service_pb2_grpc.ContextServiceStub(self.channel)

    async def upload(self, data: bytes = b"some text\n") -> Context:
        """Store one text."""
        return await self.upload_messages(start(Context.KIND_TEXT), chunk(data, 0))

    async def upload_messages(self, *messages: context_pb.UploadContextRequest) -> Context:
        """Upload what the messages say."""
        call = self.contexts.UploadContext(iter(messages), timeout=TIMEOUT_S)
        return (await call).context

    async def create(
        self, question: str = "What is it?", *, context: Context | None = None, **limits: Any
    ) -> Run:
        """Store a run, over a small text where no context is given."""
        context = context or await self.upload()
        spec = RunSpec(question=question, context=context.name, limits=Limits(**limits))
        request = pb.CreateRunRequest(spec=spec)
        return (await self.runs.CreateRun(request, timeout=TIMEOUT_S)).run

    async def watch(self, run: Run, *, after: int = 0) -> list[RunEvent]:
        """Return a run's events to its end."""
        request = pb.WatchRunRequest(name=run.name, after_sequence=after)
        call = self.runs.WatchRun(request, timeout=TIMEOUT_S)
        return [response.event async for response in call]

    async def ask(self, *replies: Script, **limits: Any) -> tuple[Run, list[RunEvent]]:
        """Run a script of replies to its end; return the run and its events."""
        self.gateway.replies = list(replies)
        run = await self.create(**limits)
        events = await self.watch(run)
        return events[-1].run_changed, events


def start(kind: Context.Kind.ValueType, **fields: Any) -> context_pb.UploadContextRequest:
    """Return the first message of an upload."""
    return context_pb.UploadContextRequest(start=context_pb.UploadStart(kind=kind, **fields))


def document(name: str, **fields: Any) -> context_pb.UploadContextRequest:
    """Return the beginning of a document."""
    return context_pb.UploadContextRequest(document=context_pb.DocumentStart(name=name, **fields))


def chunk(data: bytes, offset: int) -> context_pb.UploadContextRequest:
    """Return a piece of an upload."""
    piece = context_pb.UploadChunk(data=data, offset_bytes=offset)
    return context_pb.UploadContextRequest(chunk=piece)


@asynccontextmanager
async def orchestrator(
    folder: Path,
    *,
    gateway: FakeGateway | None = None,
    sandbox: Served | None = None,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """Serve the orchestrator with its state in a folder."""
    gateway = gateway or FakeGateway()
    sandbox = sandbox or FakeSandbox(folder / "objects")
    async with (
        serve_on_address(gateway) as gateway_address,
        serve_on_address(sandbox) as sandbox_address,
    ):
        values: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "drain_s": 2.0,
            "gateway_address": gateway_address,
            "sandbox_address": sandbox_address,
            "database_url": Secret(f"sqlite+aiosqlite:///{folder}/orchestrator.sqlite"),
            "object_store": str(folder / "objects"),
            "run_token_key": Secret(TOKEN_KEY),
        }
        config = OrchestratorConfig(**values | settings)
        async with open_orchestrator(config) as server, open_channel(server.address) as channel:
            yield Stack(channel, gateway, sandbox, server, config)


@asynccontextmanager
async def serve_on_address(servicer: Served) -> AsyncIterator[str]:
    """Serve a fake and yield its address."""
    server: Server | None = None

    def register(real: Server) -> None:
        nonlocal server
        server = real
        servicer.register(real)

    async with serve(register):
        assert server is not None
        yield server.address

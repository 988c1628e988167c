"""The orchestrator's ContextService alone over loopback, on a real database and a real store."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1 import context_service_pb2_grpc
from fathom.orchestrator.v1.context_pb2 import Context
from fathom_client.errors import CallError, from_rpc_error
from obstore.store import S3Store

from common.channel import open_channel
from common.config import ServerConfig
from common.database import Database
from common.errors import ReceivedError, received
from common.server import Server
from orchestrator.blobs import BlobStore, FolderBlobStore
from orchestrator.contexts.assembly import Contexts, ContextSettings, open_contexts
from orchestrator.contexts.upload_plan import UploadLimits
from orchestrator.tables import MIGRATIONS
from orchestrator.tenants import Caller, set_caller
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, chunk, start

TENANT_KEY = "tenant"
"""Metadata that says who calls: keys are tested elsewhere."""


@dataclasses.dataclass
class ContextStack:
    """A running service."""

    folder: Path
    parts: Contexts
    database: Database
    blobs: BlobStore
    address: str
    channel: grpc.aio.Channel

    @property
    def stub(self) -> context_service_pb2_grpc.ContextServiceAsyncStub:
        """The service."""
        return context_service_pb2_grpc.ContextServiceStub(self.channel)

    async def upload(
        self, *messages: pb.UploadContextRequest, tenant: str = "default"
    ) -> pb.UploadContextResponse:
        """Upload what the messages say."""
        return await self.stub.UploadContext(
            iter(messages), timeout=TIMEOUT_S, metadata=[(TENANT_KEY, tenant)]
        )

    async def upload_text(self, data: bytes, *, tenant: str = "default", **fields: Any) -> Context:
        """Store one text."""
        messages = text_messages(data, **fields)
        return (await self.upload(*messages, tenant=tenant)).context

    async def refused_upload(self, *messages: pb.UploadContextRequest) -> CallError:
        """Return how an upload is refused, perhaps while it is still sent: where that is so, an
        asynchronous call would lose the reason."""
        return await asyncio.to_thread(_refused_upload, self.address, messages)

    async def break_off(self, *messages: pb.UploadContextRequest) -> None:
        """Send messages, and then nothing more: once they are taken, the connection ends."""
        call = self.stub.UploadContext(timeout=TIMEOUT_S)
        for message in messages:
            await call.write(message)
        await self.have_written(sum(len(message.chunk.data) for message in messages))
        call.cancel()

    async def have_written(self, size_bytes: int) -> None:
        """Wait until unfinished uploads have so many bytes; that is only known of a folder."""
        partial = self.folder / "objects" / "partial"

        def has_them() -> bool:
            try:
                return sum(each.stat().st_size for each in partial.iterdir()) == size_bytes
            except FileNotFoundError:  # it comes, or goes, just then
                return False

        await eventually(has_them)

    async def kept(self, upload_id: str) -> pb.GetUploadResponse:
        """Tell what is kept of an upload."""
        return await self.stub.GetUpload(
            pb.GetUploadRequest(upload_id=upload_id), timeout=TIMEOUT_S
        )

    async def read(self, name: str, *, tenant: str = "default") -> bytes:
        """Return a context's bytes."""
        call = self.stub.ReadContext(
            pb.ReadContextRequest(name=name), timeout=TIMEOUT_S, metadata=[(TENANT_KEY, tenant)]
        )
        return b"".join([response.data async for response in call])

    async def delete(self, name: str, *, tenant: str = "default", **fields: Any) -> None:
        """Delete a context."""
        await self.stub.DeleteContext(
            pb.DeleteContextRequest(name=name, **fields),
            timeout=TIMEOUT_S,
            metadata=[(TENANT_KEY, tenant)],
        )


def _refused_upload(address: str, messages: Sequence[pb.UploadContextRequest]) -> CallError:
    with grpc.insecure_channel(address) as channel:
        stub = context_service_pb2_grpc.ContextServiceStub(channel)
        try:
            stub.UploadContext(iter(messages), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return from_rpc_error(error)
    raise AssertionError("the upload was not refused")


async def refused(call: Any) -> ReceivedError:
    """Return the error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return received(error)
    raise AssertionError("the call was not refused")


def text_messages(
    data: bytes, *, offset: int = 0, chunk_bytes: int = 1 << 20, **fields: Any
) -> Iterator[pb.UploadContextRequest]:
    """Yield the messages of an upload of one text, from an offset on."""
    yield start(Context.KIND_TEXT, **fields)
    for at in range(offset, len(data), chunk_bytes):
        yield chunk(data[at : at + chunk_bytes], at)


@asynccontextmanager
async def context_service(
    folder: Path,
    *,
    blobs: BlobStore | None = None,
    database_url: str = "",
    folders: tuple[Path, ...] = (),
    buckets: Mapping[str, S3Store] | None = None,
    upload_ttl_s: float = 3600.0,
    sweep_interval_s: float = 3600.0,
    **limits: Any,
) -> AsyncIterator[ContextStack]:
    """Serve contexts with their state in a folder."""
    settings = ContextSettings(
        limits=UploadLimits(**{"bytes_max": 1 << 30, "documents_max": 1000, **limits}),
        upload_ttl_s=upload_ttl_s,
        sweep_interval_s=sweep_interval_s,
        folders=folders,
        buckets=buckets or {},
    )
    url = database_url or f"sqlite+aiosqlite:///{folder}/contexts.sqlite"
    database = await Database.open(url, MIGRATIONS)
    try:
        store = blobs or FolderBlobStore(folder / "objects")
        async with open_contexts(database, store, settings) as parts:
            server = Server("test", ServerConfig(drain_s=0.2), admit=_admit)
            parts.servicer.register(server)
            async with server, open_channel(server.address) as channel:
                yield ContextStack(folder, parts, database, store, server.address, channel)
    finally:
        await database.close()


def _admit(_method: str, context: Any) -> None:
    metadata = dict(context.invocation_metadata() or ())
    set_caller(Caller(tenant=str(metadata.get(TENANT_KEY, "default"))))

"""ContextService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1 import context_service_pb2_grpc
from fathom.orchestrator.v1.context_pb2 import Context, Document

from common.errors import InvalidFieldError, NotFoundError
from common.page_tokens import (
    make_page_token,
    page_length,
    page_number,
    page_size,
    read_page_number,
    read_page_token,
)
from common.server import Server
from orchestrator.blobs import BlobMissingError, BlobStore
from orchestrator.contexts.removal import Removal
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.contexts.upload_plan import TITLE_CHARACTERS_MAX, UploadPlan
from orchestrator.contexts.upload_stream import UploadStream
from orchestrator.contexts.uploads import Uploads
from orchestrator.contexts.uri_sources import UriSources
from orchestrator.resource_names import read_name
from orchestrator.tenants import caller_of, tenant_of

_NAME = "fathom.orchestrator.v1.ContextService"
CallContext = grpc.aio.ServicerContext[Any, Any]
_KINDS = {
    Context.KIND_TEXT: ContextKind.TEXT,
    Context.KIND_DOCUMENTS: ContextKind.DOCUMENTS,
    Context.KIND_JSON: ContextKind.JSON,
}
_WIRE_KINDS = {kind: number for number, kind in _KINDS.items()}


class ContextServicer(context_service_pb2_grpc.ContextServiceServicer):
    """The service."""

    def __init__(
        self,
        contexts: ContextStore,
        blobs: BlobStore,
        uploads: Uploads,
        removal: Removal,
        sources: UriSources,
    ) -> None:
        self._contexts = contexts
        self._blobs = blobs
        self._uploads = uploads
        self._removal = removal
        self._sources = sources

    def register(self, server: Server) -> None:
        """Add it to a server."""
        context_service_pb2_grpc.add_ContextServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def UploadContext(
        self, request_iterator: AsyncIterator[pb.UploadContextRequest], context: CallContext
    ) -> pb.UploadContextResponse:
        """Store the bytes of a stream of chunks."""
        plan, upload_id = await _start(request_iterator)
        opened = await self._uploads.open(tenant_of(context), plan, upload_id)
        if isinstance(opened, StoredContext):
            return pb.UploadContextResponse(context=context_message(opened), already_stored=True)
        try:
            async for request in request_iterator:
                await _feed(opened, request)
            # The requests of a client that has gone end like those of one that is done. Only
            # sending something tells them apart: where nobody is there, it fails.
            await context.send_initial_metadata(())
            stored, was_there = await opened.finish()
        finally:
            await self._uploads.close(opened)
        return pb.UploadContextResponse(context=context_message(stored), already_stored=was_there)

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: CallContext
    ) -> pb.GetUploadResponse:
        """Tell what is kept of an upload."""
        upload_id = _upload_id("upload_id", request.upload_id)
        kept = await self._uploads.kept(tenant_of(context), upload_id)
        response = pb.GetUploadResponse(bytes_kept=kept.size_bytes, documents_kept=kept.documents)
        if kept.context is not None:
            response.context.CopyFrom(context_message(kept.context))
        return response

    async def CreateContext(
        self, request: pb.CreateContextRequest, context: CallContext
    ) -> pb.CreateContextResponse:
        """Store what a URI holds."""
        if request.kind not in (Context.KIND_TEXT, Context.KIND_JSON):
            raise InvalidFieldError("kind", "must be KIND_TEXT or KIND_JSON")
        source = self._sources.source(request.uri)
        plan = UploadPlan(
            kind=_KINDS[request.kind],
            title=request.title or request.uri[:TITLE_CHARACTERS_MAX],
            ttl_s=_seconds(request),
        )
        stored = await self._uploads.store(tenant_of(context), plan, source.pieces())
        return pb.CreateContextResponse(context=context_message(stored))

    async def GetContext(
        self, request: pb.GetContextRequest, context: CallContext
    ) -> pb.GetContextResponse:
        """Describe a context."""
        stored = await self._find(tenant_of(context), request.name)
        return pb.GetContextResponse(context=context_message(stored))

    async def ListContexts(
        self, request: pb.ListContextsRequest, context: CallContext
    ) -> pb.ListContextsResponse:
        """List contexts, newest first."""
        size = page_size(request.page_size)
        last = read_page_token("contexts", request.page_token)
        before: tuple[int, str] | None = None
        if last:
            created_us, _, context_id = last.partition("/")
            before = page_number(created_us), context_id
        found = await self._contexts.newest(tenant_of(context), before=before, count=size + 1)
        contexts = [context_message(stored) for stored in found]
        length = page_length(contexts, size)
        token = ""
        if len(found) > length:
            end = found[length - 1]
            token = make_page_token("contexts", f"{end.created_us}/{end.context_id}")
        return pb.ListContextsResponse(contexts=contexts[:length], next_page_token=token)

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: CallContext
    ) -> pb.ListDocumentsResponse:
        """List a context's documents."""
        size = page_size(request.page_size)
        stored = await self._find(tenant_of(context), request.name)
        scope = f"documents/{stored.context_id}"
        first = read_page_number(scope, request.page_token)
        if stored.kind is not ContextKind.DOCUMENTS:
            return pb.ListDocumentsResponse(documents=[_only_document(stored)])
        found = await self._contexts.documents(
            tenant_of(context), stored.context_id, first=first, count=size + 1
        )
        documents = [_document_message(document) for document in found]
        length = page_length(documents, size)
        token = make_page_token(scope, str(first + length)) if len(found) > length else ""
        return pb.ListDocumentsResponse(documents=documents[:length], next_page_token=token)

    async def ReadContext(
        self, request: pb.ReadContextRequest, context: CallContext
    ) -> AsyncIterator[pb.ReadContextResponse]:
        """Stream a range of the stored bytes."""
        if request.offset_bytes < 0:
            raise InvalidFieldError("offset_bytes", "must be at least 0")
        if request.size_bytes < 0:
            raise InvalidFieldError("size_bytes", "must be at least 0")
        stored = await self._find(tenant_of(context), request.name)
        size = stored.readable_bytes - request.offset_bytes
        if request.HasField("size_bytes"):
            size = min(size, request.size_bytes)
        try:
            async for data in self._blobs.read(
                stored.blob_key, offset=stored.offset_bytes + request.offset_bytes, size=size
            ):
                yield pb.ReadContextResponse(data=data)
        except BlobMissingError:  # deleted just then
            raise NotFoundError(stored.name) from None

    async def DeleteContext(
        self, request: pb.DeleteContextRequest, context: CallContext
    ) -> pb.DeleteContextResponse:
        """Delete a context."""
        context_id = read_name("name", request.name, collection="contexts")
        try:
            caller = caller_of(context)
            await self._removal.delete_context(caller.tenant, context_id, actor=caller.key)
        except NotFoundError:
            if not request.allow_missing:
                raise
        return pb.DeleteContextResponse()

    async def _find(self, tenant: str, name: str) -> StoredContext:
        context_id = read_name("name", name, collection="contexts")
        return await self._contexts.get(tenant, context_id)


async def _start(requests: AsyncIterator[pb.UploadContextRequest]) -> tuple[UploadPlan, str]:
    """Return what the first message announces."""
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("message") != "start":
        raise InvalidFieldError("start", "must be the first message of the stream")
    start = first.start
    if start.kind not in _KINDS:
        raise InvalidFieldError("start.kind", "must be a kind of context")
    plan = UploadPlan(
        kind=_KINDS[start.kind],
        title=start.title,
        size_bytes=start.size_bytes if start.HasField("size_bytes") else None,
        blake3=start.blake3,
        ttl_s=_seconds(start),
    )
    return plan, _upload_id("start.upload_id", start.upload_id) if start.upload_id else ""


async def _feed(stream: UploadStream, request: pb.UploadContextRequest) -> None:
    case = request.WhichOneof("message")
    if case == "chunk":
        await stream.chunk(request.chunk.offset_bytes, request.chunk.data)
    elif case == "document":
        await stream.document(request.document.name, request.document.metadata)
    elif case == "start":
        raise InvalidFieldError("start", "must be the first message only")
    else:
        raise InvalidFieldError("message", "must be a document or a chunk")


def _upload_id(field: str, text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidFieldError(field, "must be a UUID") from None


def _seconds(message: pb.UploadStart | pb.CreateContextRequest) -> float | None:
    return message.ttl.ToNanoseconds() / 1e9 if message.HasField("ttl") else None


def context_message(stored: StoredContext) -> Context:
    """Return a context as the contract describes it."""
    message = Context(
        name=stored.name,
        kind=_WIRE_KINDS[stored.kind],
        title=stored.title,
        size_bytes=stored.size_bytes,
        blake3=stored.blake3,
        characters=stored.shape.characters,
        lines=stored.shape.lines,
        tokens_estimated=stored.tokens_estimated,
        malformed_sequences=stored.shape.malformed_sequences,
        document_count=stored.document_count,
    )
    message.create_time.FromMicroseconds(stored.created_us)
    if stored.expires_us is not None:
        message.expire_time.FromMicroseconds(stored.expires_us)
    return message


def _document_message(document: StoredDocument) -> Document:
    return Document(
        name=document.name,
        offset_bytes=document.offset_bytes,
        size_bytes=document.size_bytes,
        characters=document.characters,
        metadata=document.metadata,
    )


def _only_document(stored: StoredContext) -> Document:
    return Document(size_bytes=stored.size_bytes, characters=stored.shape.characters)

"""ContextService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fathom.orchestrator.v1 import context_service_pb2 as pb
from fathom.orchestrator.v1 import context_service_pb2_grpc
from fathom.orchestrator.v1.context_pb2 import Context, Document

from common.errors import InvalidFieldError, NotBuiltYetError
from common.page_tokens import make_page_token, page_length, page_size, read_page_token
from common.server import Server
from orchestrator.blobs import BlobStore
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.stored_context import ContextKind, StoredContext, StoredDocument
from orchestrator.contexts.upload import Upload, UploadLimits, UploadPlan
from orchestrator.resource_names import read_name
from orchestrator.tenants import tenant_of

_NAME = "fathom.orchestrator.v1.ContextService"
CallContext = grpc.aio.ServicerContext[Any, Any]
_INLINE_BYTES = 64 << 10
"""A chunk up to this is taken faster than a thread is reached; small files come as such."""
_KINDS = {
    Context.KIND_TEXT: ContextKind.TEXT,
    Context.KIND_DOCUMENTS: ContextKind.DOCUMENTS,
    Context.KIND_JSON: ContextKind.JSON,
}
_WIRE_KINDS = {kind: number for number, kind in _KINDS.items()}


class ContextServicer(context_service_pb2_grpc.ContextServiceServicer):
    """The service."""

    def __init__(self, contexts: ContextStore, blobs: BlobStore, limits: UploadLimits) -> None:
        self._contexts = contexts
        self._blobs = blobs
        self._limits = limits

    def register(self, server: Server) -> None:
        """Add it to a server."""
        context_service_pb2_grpc.add_ContextServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def UploadContext(
        self, request_iterator: AsyncIterator[pb.UploadContextRequest], context: CallContext
    ) -> pb.UploadContextResponse:
        """Store the bytes of a stream of chunks."""
        upload = await self._begin_upload(request_iterator)
        try:
            async for request in request_iterator:
                await _feed(upload, request)
            stored, documents = await asyncio.to_thread(upload.finish)
        finally:
            await asyncio.to_thread(upload.abort)
        stored, was_there = await self._contexts.add(tenant_of(context), stored, documents)
        return pb.UploadContextResponse(context=context_message(stored), already_stored=was_there)

    async def GetUpload(
        self, _request: pb.GetUploadRequest, _context: CallContext
    ) -> pb.GetUploadResponse:
        """Refuse: uploads are not kept when they break off."""
        raise NotBuiltYetError("GetUpload", "an upload that breaks off is begun again")

    async def CreateContext(
        self, _request: pb.CreateContextRequest, _context: CallContext
    ) -> pb.CreateContextResponse:
        """Refuse: the server reads no URIs."""
        raise NotBuiltYetError("CreateContext", "the server reads no URIs; use UploadContext")

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
            before = int(created_us), context_id
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
        first = int(read_page_token(scope, request.page_token) or 0)
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
        size = stored.size_bytes - request.offset_bytes
        if request.HasField("size_bytes"):
            size = min(size, request.size_bytes)
        async for data in self._blobs.read(stored.blob_key, offset=request.offset_bytes, size=size):
            yield pb.ReadContextResponse(data=data)

    async def DeleteContext(
        self, _request: pb.DeleteContextRequest, _context: CallContext
    ) -> pb.DeleteContextResponse:
        """Refuse: contexts are kept."""
        raise NotBuiltYetError("DeleteContext", "contexts are kept for good so far")

    async def _begin_upload(self, requests: AsyncIterator[pb.UploadContextRequest]) -> Upload:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise InvalidFieldError("start", "must be the first message of the stream")
        start = first.start
        if start.kind not in _KINDS:
            raise InvalidFieldError("start.kind", "must be a kind of context")
        if start.upload_id:
            raise NotBuiltYetError("start.upload_id", "uploads cannot be resumed so far")
        plan = UploadPlan(
            kind=_KINDS[start.kind],
            title=start.title,
            size_bytes=start.size_bytes if start.HasField("size_bytes") else None,
            blake3=start.blake3,
        )
        writer = await asyncio.to_thread(self._blobs.create)
        try:
            return Upload(plan, writer, self._limits)
        except Exception:
            writer.abort()
            raise

    async def _find(self, tenant: str, name: str) -> StoredContext:
        context_id = read_name("name", name, collection="contexts")
        return await self._contexts.get(tenant, context_id)


async def _feed(upload: Upload, request: pb.UploadContextRequest) -> None:
    case = request.WhichOneof("message")
    if case == "chunk":
        chunk = request.chunk
        if len(chunk.data) <= _INLINE_BYTES:
            upload.chunk(chunk.offset_bytes, chunk.data)
        else:
            await asyncio.to_thread(upload.chunk, chunk.offset_bytes, chunk.data)
    elif case == "document":
        upload.document(request.document.name, request.document.metadata)
    elif case == "start":
        raise InvalidFieldError("start", "must be the first message only")
    else:
        raise InvalidFieldError("message", "must be a document or a chunk")


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

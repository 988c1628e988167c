"""Contexts: the data that runs read. They come in by `Client.upload`, or are read by the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from fathom.orchestrator.v1 import context_pb2, context_service_pb2_grpc
from fathom.orchestrator.v1 import context_service_pb2 as pb

from fathom_client.calls import answer_of
from fathom_client.errors import UnavailableError, from_rpc_error

_TIMEOUT_S = 30.0
_READ_TIMEOUT_S = 24 * 3600.0
_PAGE_SIZE_MAX = 500
_PAUSES_S = (0.2, 0.5, 1.0, 3.0)


class Contexts:
    """The contexts of one server. The channel belongs to the client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: context_service_pb2_grpc.ContextServiceAsyncStub = (
            context_service_pb2_grpc.ContextServiceStub(channel)
        )

    async def create(
        self,
        uri: str,
        kind: context_pb2.Context.Kind.ValueType = context_pb2.Context.KIND_TEXT,
        *,
        title: str = "",
        ttl_s: float | None = None,
        timeout_s: float = _READ_TIMEOUT_S,
    ) -> context_pb2.Context:
        """Have the server read one text or JSON value from a URI that its configuration allows."""
        request = pb.CreateContextRequest(uri=uri, kind=kind, title=title)
        if ttl_s is not None:
            request.ttl.FromNanoseconds(round(ttl_s * 1e9))
        return (await answer_of(self._stub.CreateContext(request, timeout=timeout_s))).context

    async def get(self, name: str) -> context_pb2.Context:
        """Return the description of `contexts/{context}`."""
        request = pb.GetContextRequest(name=name)
        return (await answer_of(self._stub.GetContext(request, timeout=_TIMEOUT_S))).context

    async def newest(self, *, count_max: int) -> list[context_pb2.Context]:
        """Return the newest contexts, at most `count_max`."""
        found: list[context_pb2.Context] = []
        page_token = ""
        while len(found) < count_max:
            request = pb.ListContextsRequest(
                page_size=min(count_max - len(found), _PAGE_SIZE_MAX), page_token=page_token
            )
            page = await answer_of(self._stub.ListContexts(request, timeout=_TIMEOUT_S))
            found.extend(page.contexts)
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    async def documents(self, name: str, *, count_max: int) -> list[context_pb2.Document]:
        """Return the first documents of `contexts/{context}`, at most `count_max`."""
        found: list[context_pb2.Document] = []
        page_token = ""
        while len(found) < count_max:
            request = pb.ListDocumentsRequest(
                name=name,
                page_size=min(count_max - len(found), _PAGE_SIZE_MAX),
                page_token=page_token,
            )
            page = await answer_of(self._stub.ListDocuments(request, timeout=_TIMEOUT_S))
            found.extend(page.documents)
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    async def read(
        self,
        name: str,
        *,
        offset_bytes: int = 0,
        size_bytes: int | None = None,
        patience_s: float = 30.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> AsyncIterator[bytes]:
        """Yield a range of the bytes of `contexts/{context}`, up to the end without a size.

        Where the connection breaks, or the server asks for patience, it goes on behind the last
        bytes that came; the error is raised once `patience_s` seconds passed without any.
        """
        request = pb.ReadContextRequest(name=name, offset_bytes=offset_bytes, size_bytes=size_bytes)
        breaks, given_up_at = 0, time.monotonic() + patience_s
        while True:
            call = self._stub.ReadContext(request, timeout=_READ_TIMEOUT_S)
            try:
                async for response in call:
                    yield response.data
                    request.offset_bytes += len(response.data)
                    if size_bytes is not None:
                        request.size_bytes -= len(response.data)
                    breaks, given_up_at = 0, time.monotonic() + patience_s
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                wait_s = max(_PAUSES_S[min(breaks, 3)], failure.retry_after_s or 0.0)
                is_late = time.monotonic() + wait_s > given_up_at
                if not isinstance(failure, UnavailableError) or is_late:
                    raise failure from error
            else:
                return
            finally:
                call.cancel()
            breaks += 1
            await pause(wait_s)

    async def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Delete `contexts/{context}`, which no unfinished run may use."""
        request = pb.DeleteContextRequest(name=name, allow_missing=allow_missing)
        await answer_of(self._stub.DeleteContext(request, timeout=_TIMEOUT_S))

"""The orchestrator behind the ports ChildRuns and HostTools: a stream of RunChild a child, and a
call of CallHostTool for each of a host tool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import host_tool_service_pb2 as tools_wire
from fathom.orchestrator.v1 import orchestrator_service_pb2 as wire
from fathom.orchestrator.v1.host_tool_service_pb2_grpc import HostToolServiceStub
from fathom.orchestrator.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from fathom.orchestrator.v1.run_pb2 import Limits, Run

from common.channel import open_channel
from common.errors import ServiceError, received
from common.run_token import RUN_TOKEN_METADATA
from sandbox_service import frames
from sandbox_service.child_runs import ChildOrder
from sandbox_service.errors import ChildRunsUnavailableError, HostToolsUnavailableError
from sandbox_service.host_tools import HostToolOrder
from sandbox_service.run_pass import RunPass

MESSAGE_BYTES_MAX = 16 << 20
"""A context by value goes along in one message."""
_CALL_TIMEOUT_S = 25 * 3600.0
"""Longer than any run lasts; a call that is not needed any more is cut."""
_TOOL_TIMEOUT_S = 660.0
"""Longer than a profile lets a host tool take."""
_AWAY_S = 120.0
"""How long an orchestrator is asked again that cannot be reached, has no place for the call, or no
object store, or no database, or none with room."""
_AWAY = frozenset(
    {
        ErrorReason.ERROR_REASON_SERVICE_UNREACHABLE,
        ErrorReason.ERROR_REASON_DRAINING,
        ErrorReason.ERROR_REASON_SERVER_BUSY,
        ErrorReason.ERROR_REASON_TENANT_BUSY,
        ErrorReason.ERROR_REASON_DATABASE_AWAY,
        ErrorReason.ERROR_REASON_DATABASE_FULL,
        ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE,
    }
)
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)


class OrchestratorClient:
    """Child runs and host tools over gRPC; an async context manager."""

    def __init__(
        self,
        address: str,
        address_file: Path | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Take where the orchestrator listens, or the file that it writes that to: it is read
        when there is something to ask, so that the orchestrator may start later."""
        self._address = address
        self._address_file = address_file
        self._credentials = credentials
        self._known = ""
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def run(self, order: ChildOrder, run_pass: RunPass) -> AsyncIterator[Run]:
        """Yield how the child stands, at last in a terminal state.

        A call that is cut off, as when an orchestrator goes away, is repeated: the request id
        finds the child that is there.
        """
        request = _request(order)
        heard_s, attempt = time.monotonic(), 0
        while True:
            stub = OrchestratorServiceStub(await self._opened(ChildRunsUnavailableError))
            metadata = ((RUN_TOKEN_METADATA, run_pass.token),)
            stream = stub.RunChild(request, timeout=_CALL_TIMEOUT_S, metadata=metadata)
            try:
                async for response in stream:
                    heard_s, attempt = time.monotonic(), 0
                    yield response.run
            except grpc.aio.AioRpcError as error:
                failure = received(error)
                # It waits for others of its own tenant for as long as the run has time.
                is_busy = failure.reason == ErrorReason.ERROR_REASON_TENANT_BUSY
                is_late = not is_busy and time.monotonic() - heard_s > _AWAY_S
                if not _is_away(failure) or is_late:
                    raise failure from error
            else:
                return
            finally:
                stream.cancel()
            await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    async def call_tool(self, order: HostToolOrder, run_token: str) -> str:
        """Return the result of a host tool, as JSON text.

        A call that is cut off is repeated: the request id finds what came of it.
        """
        request = tools_wire.CallHostToolRequest(
            request_id=order.request_id, tool=order.tool, arguments_json=order.arguments_json
        )
        metadata = ((RUN_TOKEN_METADATA, run_token),)
        until_s, attempt = time.monotonic() + _AWAY_S, 0
        while True:
            stub = HostToolServiceStub(await self._opened(HostToolsUnavailableError))
            try:
                response = await stub.CallHostTool(
                    request, timeout=_TOOL_TIMEOUT_S, metadata=metadata
                )
            except grpc.aio.AioRpcError as error:
                failure = received(error)
                if not _is_away(failure) or time.monotonic() > until_s:
                    raise failure from error
            else:
                return response.result_json
            await asyncio.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    async def _opened(self, unavailable: Callable[[str], ServiceError]) -> grpc.aio.Channel:
        address = self._address or _read(self._address_file)
        if not address:
            raise unavailable("the orchestrator's address is not known")
        if self._channel is None or address != self._known:
            before, self._known = self._channel, address
            self._channel = open_channel(
                address, message_bytes_max=MESSAGE_BYTES_MAX, credentials=self._credentials
            )
            if before is not None:
                await before.close()
        return self._channel


def _read(address_file: Path | None) -> str:
    if address_file is None or not address_file.is_file():
        return ""
    return address_file.read_text(encoding="utf-8").strip()


def _is_away(error: ServiceError) -> bool:
    return error.code is not grpc.StatusCode.DEADLINE_EXCEEDED and error.reason in _AWAY


def _request(order: ChildOrder) -> wire.RunChildRequest:
    child = order.child
    request = wire.RunChildRequest(
        request_id=order.request_id,
        question=child.question,
        context=_context(child.context),
        limits=Limits(
            turns_max=child.turns_max,
            sub_calls_max=child.sub_calls_max,
            tokens_max=child.tokens_max,
            cost_usd_nanos_max=child.cost_usd_nanos_max,
            depth_max=child.depth_max,
            children_live_max=child.children_live_max,
        ),
        root_tier=child.tier,
        sub_tier=child.sub_tier,
        answer_schema_json=child.schema,
        siblings=order.siblings,
        sub_calls_left=order.sub_calls_left,
    )
    if child.time_max_s is not None:
        request.limits.time_max.FromNanoseconds(int(child.time_max_s * 1e9))
    return request


def _context(
    context: frames.ChildText | frames.ChildDocuments | frames.ChildJson | None,
) -> wire.ChildContext | None:
    if context is None:
        return None
    if isinstance(context, frames.ChildText):
        return wire.ChildContext(text=_text(context.text))
    if isinstance(context, frames.ChildJson):
        return wire.ChildContext(json=context.json)
    documents = [
        wire.ChildDocument(name=document.name, text=_text(document.text))
        for document in context.documents
    ]
    return wire.ChildContext(documents=wire.ChildDocuments(documents=documents))


def _text(text: frames.ValueText | frames.SliceText) -> wire.ChildText:
    if isinstance(text, frames.ValueText):
        return wire.ChildText(text=text.text)
    where = wire.ContextSlice(document=text.document, start=text.start, end=text.stop)
    return wire.ChildText(slice=where)

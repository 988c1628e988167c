"""The operator's services that host tools are functions of: one channel an address."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Self

import grpc
from fathom.tools.v1 import tool_service_pb2 as wire
from fathom.tools.v1.tool_service_pb2_grpc import ToolServiceStub

from common.channel import open_channel
from orchestrator.errors import HostToolFailedError
from orchestrator.profiles.profile import RESULT_BYTES_MAX, HostTool

_MESSAGE_BYTES_MAX = RESULT_BYTES_MAX + (1 << 20)
_MESSAGE_CHARACTERS = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallFacts:
    """Whose call it is."""

    tenant: str
    """The tenant."""
    run: str
    """`runs/{run}`."""
    root: str
    """`runs/{run}` at the root of its tree."""
    turn: int
    """Turn of the run."""
    cell: int
    """Cell of the turn."""
    request_id: str
    """Names the call."""
    profile: str
    """`profiles/{profile}`."""


class ToolClient:
    """Calls tools; an async context manager."""

    def __init__(self, credentials: grpc.ChannelCredentials | None) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self, tool: HostTool, arguments_json: str, facts: CallFacts, *, timeout_s: float
    ) -> str:
        """Return what a tool answers, unchecked; raises HostToolFailedError."""
        context = wire.CallContext(**dataclasses.asdict(facts))
        context.time_max.FromNanoseconds(int(timeout_s * 1e9))
        request = wire.CallToolRequest(
            name=tool.name, arguments_json=arguments_json, context=context
        )
        try:
            response: wire.CallToolResponse | None = await ToolServiceStub(
                self._channel(tool.endpoint)
            ).CallTool(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _failure(tool, error) from error
        if response is None:  # what grpc.aio makes of bytes that do not parse
            raise HostToolFailedError(tool.name, "result", "its answer is no CallToolResponse")
        return response.result_json

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = open_channel(
                endpoint, message_bytes_max=_MESSAGE_BYTES_MAX, credentials=self._credentials
            )
        return self._channels[endpoint]


def _failure(tool: HostTool, error: grpc.aio.AioRpcError) -> HostToolFailedError:
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        why = f"gave no answer within {tool.time_max_s:g} s"
        return HostToolFailedError(tool.name, "time_max", why, code)
    if code is grpc.StatusCode.UNAVAILABLE:
        # What gRPC says of it names addresses, which are not for guests.
        return HostToolFailedError(tool.name, "unreachable", "its service cannot be reached")
    # For terminals and logs too: what a service says commands neither.
    said = "".join(
        each if each.isprintable() else " "
        for each in (error.details() or "")[:_MESSAGE_CHARACTERS]
    )
    return HostToolFailedError(tool.name, "error", f"{code.name}: {said}", code)

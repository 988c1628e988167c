"""HostToolService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

from typing import Any

import grpc
from fathom.orchestrator.v1 import host_tool_service_pb2 as pb
from fathom.orchestrator.v1 import host_tool_service_pb2_grpc

from common.run_token import RunTokenVerifier
from common.server import Server
from orchestrator.bearers import token_of
from orchestrator.profiles.host_tools import HostTools, ToolOrder
from orchestrator.tenant_places import CellPlaces

_NAME = "fathom.orchestrator.v1.HostToolService"
CallContext = grpc.aio.ServicerContext[Any, Any]


class HostToolServicer(host_tool_service_pb2_grpc.HostToolServiceServicer):
    """The service."""

    def __init__(self, tools: HostTools, tokens: RunTokenVerifier, cells: CellPlaces) -> None:
        self._tools = tools
        self._tokens = tokens
        self._cells = cells

    def register(self, server: Server) -> None:
        """Add it to a server."""
        host_tool_service_pb2_grpc.add_HostToolServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CallHostTool(
        self, request: pb.CallHostToolRequest, context: CallContext
    ) -> pb.CallHostToolResponse:
        """Call a tool of the profile of the token's run."""
        token = token_of(self._tokens, context)
        order = ToolOrder(
            request_id=request.request_id,
            tool=request.tool,
            arguments_json=request.arguments_json,
        )
        with self._cells.tool_call(token):
            return pb.CallHostToolResponse(result_json=await self._tools.call(token, order))

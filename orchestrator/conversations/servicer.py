"""ConversationService on the wire: part of the contract, every method answers UNIMPLEMENTED."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from fathom.orchestrator.v1 import conversation_service_pb2 as pb
from fathom.orchestrator.v1 import conversation_service_pb2_grpc

from common.errors import NotBuiltYetError
from common.server import Server

_NAME = "fathom.orchestrator.v1.ConversationService"
CallContext = grpc.aio.ServicerContext[Any, Any]


class ConversationServicer(conversation_service_pb2_grpc.ConversationServiceServicer):
    """The service."""

    def register(self, server: Server) -> None:
        """Add it to a server."""
        conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CreateConversation(
        self, _request: pb.CreateConversationRequest, _context: CallContext
    ) -> pb.CreateConversationResponse:
        """Refuse."""
        _refuse("CreateConversation")

    async def GetConversation(
        self, _request: pb.GetConversationRequest, _context: CallContext
    ) -> pb.GetConversationResponse:
        """Refuse."""
        _refuse("GetConversation")

    async def ListConversations(
        self, _request: pb.ListConversationsRequest, _context: CallContext
    ) -> pb.ListConversationsResponse:
        """Refuse."""
        _refuse("ListConversations")

    async def DeleteConversation(
        self, _request: pb.DeleteConversationRequest, _context: CallContext
    ) -> pb.DeleteConversationResponse:
        """Refuse."""
        _refuse("DeleteConversation")


def _refuse(method: str) -> NoReturn:
    raise NotBuiltYetError(method, "every run has a session of its own")

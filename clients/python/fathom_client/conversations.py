"""Conversations: a session that several runs use in turn, so that a later question finds the
variables of an earlier one. A run joins one by `Client.create(conversation=...)`.
"""

from __future__ import annotations

import uuid

import grpc
from fathom.orchestrator.v1 import conversation_service_pb2 as pb
from fathom.orchestrator.v1 import conversation_service_pb2_grpc

from fathom_client.calls import answer_of
from fathom_client.limits import Limits

_TIMEOUT_S = 30.0


class Conversations:
    """The conversations of one server. The channel belongs to the client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: conversation_service_pb2_grpc.ConversationServiceAsyncStub = (
            conversation_service_pb2_grpc.ConversationServiceStub(channel)
        )

    async def create(
        self,
        context: str,
        *,
        limits: Limits | None = None,
        idle_ttl_s: float | None = None,
        request_id: str | None = None,
    ) -> pb.Conversation:
        """Open a conversation about `contexts/{context}`.

        Of `limits`, which bound all its runs together, only money, tokens and sub-calls may be
        set.
        """
        asked = pb.Conversation(context=context)
        if limits is not None:
            asked.limits.CopyFrom(limits.to_wire())
        if idle_ttl_s is not None:
            asked.idle_ttl.FromNanoseconds(round(idle_ttl_s * 1_000_000_000))
        request = pb.CreateConversationRequest(
            conversation=asked, request_id=request_id or str(uuid.uuid4())
        )
        response = await answer_of(self._stub.CreateConversation(request, timeout=_TIMEOUT_S))
        return response.conversation

    async def get(self, name: str) -> pb.Conversation:
        """Return `conversations/{conversation}` as it stands."""
        request = pb.GetConversationRequest(name=name)
        response = await answer_of(self._stub.GetConversation(request, timeout=_TIMEOUT_S))
        return response.conversation

    async def newest(self, *, count_max: int) -> list[pb.Conversation]:
        """Return the newest conversations, at most `count_max`."""
        found: list[pb.Conversation] = []
        page_token = ""
        while len(found) < count_max:
            request = pb.ListConversationsRequest(
                page_size=min(count_max - len(found), 500), page_token=page_token
            )
            page = await answer_of(self._stub.ListConversations(request, timeout=_TIMEOUT_S))
            found.extend(page.conversations)
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    async def delete(self, name: str) -> None:
        """End a conversation; its runs stay."""
        request = pb.DeleteConversationRequest(name=name)
        await answer_of(self._stub.DeleteConversation(request, timeout=_TIMEOUT_S))

"""ConversationService on the wire: messages in, domain calls, messages out."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
from fathom.orchestrator.v1 import conversation_service_pb2 as pb
from fathom.orchestrator.v1 import conversation_service_pb2_grpc

from common.errors import NotFoundError
from common.page_tokens import make_page_token, page_size, read_page_token
from common.server import Server
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.upload_plan import check_length
from orchestrator.conversations.conversation import StoredConversation
from orchestrator.conversations.request import new_conversation
from orchestrator.conversations.store import ConversationRequest, ConversationStore
from orchestrator.resource_names import read_name
from orchestrator.tenants import caller_of, tenant_of

REQUEST_ID_CHARACTERS_MAX = 256
_NAME = "fathom.orchestrator.v1.ConversationService"
_SCOPE = "conversations"
_RUNS_SHOWN = 100
_EXPIRED_AT_ONCE = 100
"""Those that have expired are deleted when others are made or listed."""
CallContext = grpc.aio.ServicerContext[Any, Any]


class ConversationServicer(conversation_service_pb2_grpc.ConversationServiceServicer):
    """The service."""

    def __init__(self, conversations: ConversationStore, contexts: ContextStore) -> None:
        self._conversations = conversations
        self._contexts = contexts

    def register(self, server: Server) -> None:
        """Add it to a server."""
        conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(self, server.grpc)
        server.serves(_NAME)

    async def CreateConversation(
        self, request: pb.CreateConversationRequest, context: CallContext
    ) -> pb.CreateConversationResponse:
        """Open a conversation."""
        check_length("request_id", request.request_id, REQUEST_ID_CHARACTERS_MAX)
        tenant = tenant_of(context)
        made = new_conversation(tenant, request.conversation)
        await self._contexts.get(tenant, made.context_id)
        await self._conversations.delete_expired(tenant, count=_EXPIRED_AT_ONCE)
        key: ConversationRequest | None = None
        if request.request_id:
            data = request.conversation.SerializeToString(deterministic=True)
            digest = hashlib.blake2b(data, digest_size=32).digest()
            key = ConversationRequest(request.request_id, digest)
        stored = await self._conversations.create(made, key)
        return pb.CreateConversationResponse(conversation=await self._message(stored))

    async def GetConversation(
        self, request: pb.GetConversationRequest, context: CallContext
    ) -> pb.GetConversationResponse:
        """Return a conversation."""
        identity = read_name("name", request.name, collection="conversations")
        stored = await self._conversations.get(tenant_of(context), identity)
        return pb.GetConversationResponse(conversation=await self._message(stored))

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: CallContext
    ) -> pb.ListConversationsResponse:
        """List conversations, newest first."""
        size, tenant = page_size(request.page_size), tenant_of(context)
        before = read_page_token(_SCOPE, request.page_token)
        await self._conversations.delete_expired(tenant, count=_EXPIRED_AT_ONCE)
        found = await self._conversations.newest(tenant, before=before, count=size + 1)
        token = ""
        if len(found) > size:
            token = make_page_token(_SCOPE, found[size - 1].conversation_id)
        shown = [await self._message(each) for each in found[:size]]
        return pb.ListConversationsResponse(conversations=shown, next_page_token=token)

    async def DeleteConversation(
        self, request: pb.DeleteConversationRequest, context: CallContext
    ) -> pb.DeleteConversationResponse:
        """End a conversation."""
        identity = read_name("name", request.name, collection="conversations")
        try:
            caller = caller_of(context)
            await self._conversations.delete(caller.tenant, identity, actor=caller.key)
        except NotFoundError:
            if not request.allow_missing:
                raise
        return pb.DeleteConversationResponse()

    async def _message(self, stored: StoredConversation) -> pb.Conversation:
        newest = await self._conversations.run_ids(
            stored.tenant, stored.conversation_id, count=_RUNS_SHOWN
        )
        message = pb.Conversation(
            name=stored.name,
            context=f"contexts/{stored.context_id}",
            limits=stored.limits,
            runs=[f"runs/{run_id}" for run_id in reversed(newest)],
            usage=stored.usage,
            live_run=stored.live_run,
            sub_calls=stored.sub_calls,
        )
        message.create_time.FromMicroseconds(stored.created_us)
        message.expire_time.FromMicroseconds(stored.expires_us)
        message.idle_ttl.FromMicroseconds(stored.idle_ttl_us)
        return message

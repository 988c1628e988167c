"""What a caller asks for with a new conversation, checked field by field."""

from __future__ import annotations

import secrets
import time

from fathom.orchestrator.v1.conversation_service_pb2 import Conversation

from common.errors import InvalidFieldError
from orchestrator.conversations.conversation import BOUNDED, StoredConversation
from orchestrator.resource_names import read_name

_US = 1_000_000
IDLE_TTL_MIN_US, IDLE_TTL_MAX_US = 60 * _US, 90 * 86_400 * _US
_IDLE_TTL_DEFAULT_US = 7 * 86_400 * _US
_RANDOM_BYTES = 8


def new_conversation(tenant: str, asked: Conversation) -> StoredConversation:
    """Return a conversation as it was asked for; raises InvalidFieldError, naming the field. That
    the context exists is not checked here."""
    context_id = read_name("conversation.context", asked.context, collection="contexts")
    wrong = {
        f"conversation.limits.{field.name}": "must be unset: each run has its own"
        for field, _ in asked.limits.ListFields()
        if field.name not in BOUNDED
    }
    for limit in BOUNDED:
        least = 1 if limit == "tokens_max" else 0
        if asked.limits.HasField(limit) and getattr(asked.limits, limit) < least:  # type: ignore[arg-type]
            wrong[f"conversation.limits.{limit}"] = f"must be at least {least}"
    idle_ttl_us = _IDLE_TTL_DEFAULT_US
    if asked.HasField("idle_ttl"):
        idle_ttl_us = asked.idle_ttl.ToMicroseconds()
        if not IDLE_TTL_MIN_US <= idle_ttl_us <= IDLE_TTL_MAX_US:
            wrong["conversation.idle_ttl"] = "must be 1 minute to 90 days"
    if wrong:
        raise InvalidFieldError.many(wrong)
    now_us = time.time_ns() // 1000
    return StoredConversation(
        tenant=tenant,
        conversation_id=f"{now_us // 1000:012x}{secrets.token_hex(_RANDOM_BYTES)}",
        context_id=context_id,
        limits=asked.limits,
        idle_ttl_us=idle_ttl_us,
        created_us=now_us,
        used_us=now_us,
    )

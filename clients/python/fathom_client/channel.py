"""The connection to an orchestrator: keepalive, message size and which calls are tried again.

Retries stand in the gRPC service config, for reads and for calls with a `request_id` only, and on
UNAVAILABLE only. A cut-off watch is not retried here but resumed, in `watching.py`.
"""

from __future__ import annotations

import json
from typing import Any

import grpc

from fathom_client.access import Access

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MESSAGE_BYTES_MAX = 4 * 1024 * 1024

_ORCHESTRATOR = "fathom.orchestrator.v1.OrchestratorService"
_CONTEXTS = "fathom.orchestrator.v1.ContextService"
_CONVERSATIONS = "fathom.orchestrator.v1.ConversationService"
_RETRIED_METHODS = (
    (_ORCHESTRATOR, "CreateRun"),
    (_ORCHESTRATOR, "GetRun"),
    (_ORCHESTRATOR, "ListRuns"),
    (_ORCHESTRATOR, "CancelRun"),
    (_ORCHESTRATOR, "ForkRun"),
    (_ORCHESTRATOR, "EstimateRun"),
    (_ORCHESTRATOR, "GetRunUsage"),
    (_CONTEXTS, "GetContext"),
    (_CONTEXTS, "ListContexts"),
    (_CONTEXTS, "ListDocuments"),
    (_CONVERSATIONS, "CreateConversation"),
    (_CONVERSATIONS, "GetConversation"),
    (_CONVERSATIONS, "ListConversations"),
)
_TLS_SCHEME = "https://"


def open_channel(address: str, access: Access) -> grpc.aio.Channel:
    """Return a channel to `host:port`, or over TLS to `https://host:port`; it connects with the
    first call, and each call brings the API key, where there is one. Raises AccessError."""
    keys: list[grpc.aio.ClientInterceptor] = []
    if metadata := access.metadata():
        keys = [_KeyOfUnary(metadata), _KeyOfStream(metadata)]
    if (target := address.removeprefix(_TLS_SCHEME)) != address:
        credentials = access.channel_credentials()
        return grpc.aio.secure_channel(target, credentials, options=_options(), interceptors=keys)
    return grpc.aio.insecure_channel(address, options=_options(), interceptors=keys)


def open_blocking_channel(address: str, access: Access) -> grpc.Channel:
    """Return a channel for calls that are not made through asyncio; they bring no API key by
    themselves. Raises AccessError."""
    if (target := address.removeprefix(_TLS_SCHEME)) != address:
        return grpc.secure_channel(target, access.channel_credentials(), options=_options())
    return grpc.insecure_channel(address, options=_options())


class _Key:
    """Adds the API key to a call's metadata."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def _with_key(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=grpc.aio.Metadata(*(details.metadata or ()), *self._metadata),
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _KeyOfUnary(_Key, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_key(details), request)


class _KeyOfStream(_Key, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_key(details), request)


def _options() -> list[tuple[str, int | str]]:
    return [
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Without these two a ping is waited for for a minute, and a call that only listens sends
        # two and then hardly any.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.service_config", _service_config()),
    ]


def _service_config() -> str:
    return json.dumps(
        {
            "methodConfig": [
                {
                    "name": [
                        {"service": service, "method": method}
                        for service, method in _RETRIED_METHODS
                    ],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "2s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    )

"""The connection to an orchestrator: keepalive, message size and which calls are tried again.

Retries stand in the gRPC service config, for reads and for calls with a `request_id` only, and on
UNAVAILABLE only. A cut-off watch is not retried here but resumed, in `watching.py`.
"""

from __future__ import annotations

import json

import grpc

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MESSAGE_BYTES_MAX = 4 * 1024 * 1024

_ORCHESTRATOR = "fathom.orchestrator.v1.OrchestratorService"
_CONTEXTS = "fathom.orchestrator.v1.ContextService"
_RETRIED_METHODS = (
    (_ORCHESTRATOR, "CreateRun"),
    (_ORCHESTRATOR, "GetRun"),
    (_ORCHESTRATOR, "ListRuns"),
    (_ORCHESTRATOR, "CancelRun"),
    (_CONTEXTS, "GetContext"),
    (_CONTEXTS, "ListContexts"),
    (_CONTEXTS, "ListDocuments"),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel to `host:port`; it connects with the first call."""
    return grpc.aio.insecure_channel(address, options=_options())


def open_blocking_channel(address: str) -> grpc.Channel:
    """Return a channel for calls that are not made through asyncio."""
    return grpc.insecure_channel(address, options=_options())


def _options() -> list[tuple[str, int | str]]:
    return [
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
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

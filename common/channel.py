"""Channels to other services: keepalive, limits, and the deadline and trace of the call being
served carried along, which gRPC for Python does not do by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry import propagate

from common import deadline
from common.server import MESSAGE_BYTES_MAX


def open_channel(address: str, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> grpc.aio.Channel:
    """Open a channel; it connects with the first call. Close it with its owner.

    Every call gets the smaller of its own timeout and what is left of the call being served.
    """
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_send_message_length", message_bytes_max),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ],
        interceptors=[
            _UnaryUnary(),
            _UnaryStream(),
            _StreamUnary(),
            _StreamStream(),
        ],
    )


def _carry(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    timeouts = [t for t in (details.timeout, deadline.remaining_s()) if t is not None]
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    trace_headers: dict[str, str] = {}
    propagate.inject(trace_headers)
    for key, value in trace_headers.items():
        metadata.add(key, value)
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=min(timeouts, default=None),
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Any]


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_carry(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_carry(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Continuation, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_carry(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Continuation, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_carry(client_call_details), request_iterator)

"""Channels to other services: keepalive, limits, and the deadline and trace of the call being
served carried along, which gRPC for Python does not do by itself.

Carried by wrapping the channel: interceptors of grpc.aio make a task of each call, which costs
0.1 ms on every hop.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry import propagate

from common import deadline
from common.server import MESSAGE_BYTES_MAX

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 20_000


def open_channel(
    address: str,
    *,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """Open a channel; it connects with the first call. Close it with its owner.

    Without `credentials` it speaks plaintext. Every call gets the smaller of its own timeout and
    what is left of the call being served.
    """
    options = [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Without these two a ping is waited for for a minute, and a call that only listens sends
        # two and then hardly any.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if credentials is None:
        return _CarryingChannel(grpc.aio.insecure_channel(address, options=options))
    return _CarryingChannel(grpc.aio.secure_channel(address, credentials, options=options))


class _CarryingChannel(grpc.aio.Channel):
    """A channel whose calls carry deadline and trace; all else is the inner channel's."""

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return _carrying(self._inner.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _carrying(self._inner.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return _carrying(self._inner.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return _carrying(self._inner.stream_stream(*args, **options))

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, traceback)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()


def _carrying(multi_callable: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        *request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        left_s = deadline.remaining_s()
        if left_s is not None:
            timeout = left_s if timeout is None else min(timeout, left_s)
        trace_headers: dict[str, str] = {}
        propagate.inject(trace_headers)
        carried = (*(metadata or ()), *trace_headers.items())
        return multi_callable(*request, timeout=timeout, metadata=carried, **options)

    return call

"""Requests as they come: bounded in size and time, parsed, and read once their call is admitted.

gRPC reads the request of a unary call before it asks for the behaviour: whoever never sends one
would hold a place, and whoever sends a large one memory, without being known.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from common.errors import InvalidFieldError, RequestTooLargeError, ServiceError

_MALFORMED = "the bytes are not a message of this method"
Context = grpc.aio.ServicerContext[Any, Any]
Deserialize = Callable[[bytes], Any]


class _Refused:
    """Stands for a request that is not read, until the call can answer it."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


def bounded(deserialize: Deserialize, bytes_max: int) -> Deserialize:
    """Return what reads requests of at most `bytes_max`. It never raises: what is refused does
    where it is `checked`, so that the call can answer it."""

    def read(data: bytes) -> Any:
        if len(data) > bytes_max:
            return _Refused(RequestTooLargeError(len(data), bytes_max))
        try:
            return deserialize(data)
        except DecodeError:
            return _Refused(InvalidFieldError("request", _MALFORMED))

    return read


def read_late(handler: Any, *, within_s: float) -> Any:
    """Return a method's handler whose behaviours take a stream of requests. Where it took one
    request, that is read when the behaviour is called, and must come `within_s`.

    On the wire both are the same.
    """
    if handler.request_streaming:
        return handler
    make, behavior = _late_unary, handler.unary_unary
    if handler.response_streaming:
        make, behavior = _late_stream, handler.unary_stream
    return make(
        behavior,
        within_s,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield the requests of a stream; a refused one raises where it is met."""
    async for request in requests:
        yield _read(request)


def _late_unary(behavior: Any, within_s: float, **codecs: Any) -> Any:
    async def call(_: AsyncIterator[Any], context: Context) -> Any:
        return await behavior(await _only(context, within_s), context)

    return grpc.stream_unary_rpc_method_handler(call, **codecs)


def _late_stream(behavior: Any, within_s: float, **codecs: Any) -> Any:
    async def call(_: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for response in behavior(await _only(context, within_s), context):
            yield response

    return grpc.stream_stream_rpc_method_handler(call, **codecs)


async def _only(context: Context, within_s: float) -> Any:
    """Return a call's one request; raises InvalidFieldError where none comes."""
    try:
        async with asyncio.timeout(within_s):
            request = await context.read()
    except TimeoutError:
        raise InvalidFieldError("request", f"did not come within {within_s:g} s") from None
    if request is grpc.aio.EOF:
        raise InvalidFieldError("request", "is missing")
    return _read(request)


def _read(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request

"""What happens around every call that is served: deadline, trace, duration, and the one place
where an exception becomes a status.

Streaming methods are async generators; none writes through the context.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from common import deadline, requests, telemetry_names
from common.errors import ServerBusyError, ServiceError
from common.telemetry import meter, tracer

_log = logging.getLogger(__name__)
_OPEN = ("/grpc.health.", "/grpc.reflection.")
"""Methods that anybody may call."""
_OPEN_STREAMS_MAX = 64
"""How many of them that last are served at a time, so that they take no places of others'."""
_OPEN_REQUEST_S = 5.0
_REQUEST_S = 60.0
"""How long a request may take to come."""

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]
Admit = Callable[[str, Context], None]
"""Is told a call's method before it is served; raises a ServiceError to refuse it."""


class _Around(grpc.aio.ServerInterceptor, abc.ABC):
    """Puts something around the behaviour of each method, whatever its shape."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        # A method's handler never changes, so it is wrapped once and not with every call.
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # grpc answers UNIMPLEMENTED
            handler = self._handlers[method] = self.wrapped(method, handler)
        return handler

    def wrapped(self, method: str, handler: Any) -> Any:
        """Return what to call in place of a method's handler."""
        shape = f"{'stream' if handler.request_streaming else 'unary'}_" + (
            "stream" if handler.response_streaming else "unary"
        )
        wrap: Callable[[str, Any], Any] = (
            self.around_stream if handler.response_streaming else self.around_unary
        )
        make = getattr(grpc, f"{shape}_rpc_method_handler")
        return make(
            wrap(method, getattr(handler, shape)),
            request_deserializer=self.deserializer(method, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def deserializer(self, method: str, deserialize: requests.Deserialize) -> requests.Deserialize:
        """Return what to read requests with in place of `deserialize`."""
        del method
        return deserialize

    @abc.abstractmethod
    def around_unary(self, method: str, behavior: Unary) -> Unary:
        """Return what to call in place of a behaviour that returns one response."""

    @abc.abstractmethod
    def around_stream(self, method: str, behavior: Stream) -> Stream:
        """Return what to call in place of a behaviour that yields responses."""


class ErrorInterceptor(_Around):
    """Turns exceptions into statuses. It is a security control: without it grpc.aio sends an
    exception's own text to the caller, also that of a request that does not parse.

    A call is admitted here too, before its request is read, so that a refusal becomes a status in
    the same place.
    """

    def __init__(
        self,
        admit: Admit,
        concurrent_rpcs_max: int,
        *,
        request_bytes_max: Callable[[str], int],
        waiting: Collection[str] = (),
    ) -> None:
        """`request_bytes_max` gives the most bytes of a request, by the method's path; gRPC's own
        bound is one for all methods. `waiting` are methods whose calls wait for other work: they
        have as many places again, so that they take none from those that are soon over."""
        super().__init__()
        self._admit = admit
        self._request_bytes_max = request_bytes_max
        self._waiting = frozenset(waiting)
        self._places = _Places(concurrent_rpcs_max)
        self._waiting_places = _Places(concurrent_rpcs_max)
        self._open_places = _Places(_OPEN_STREAMS_MAX)

    async def all_left(self) -> None:
        """Return once no call is served. gRPC's own stop does not wait for what a call that was cut
        off still does, and that may need what is closed after the server."""
        await self._places.empty.wait()
        await self._waiting_places.empty.wait()

    def wrapped(self, method: str, handler: Any) -> Any:
        within_s = _OPEN_REQUEST_S if method.startswith(_OPEN) else _REQUEST_S
        return super().wrapped(method, requests.read_late(handler, within_s=within_s))

    def deserializer(self, method: str, deserialize: requests.Deserialize) -> requests.Deserialize:
        return requests.bounded(deserialize, self._request_bytes_max(method))

    def around_unary(self, method: str, behavior: Unary) -> Unary:
        # A look at the health is soon over, and must not find its place taken.
        place = contextlib.nullcontext() if method.startswith(_OPEN) else self._places_of(method)

        async def call(request: Any, context: Context) -> Any:
            try:
                with place:
                    self._let_in(method, context)
                    return await behavior(requests.checked(request), context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:
                await _abort(context, method, error)

        return call

    def around_stream(self, method: str, behavior: Stream) -> Stream:
        place = self._open_places if method.startswith(_OPEN) else self._places_of(method)

        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                with place:
                    self._let_in(method, context)
                    async for response in behavior(requests.checked(request), context):
                        yield response
            except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
                raise
            except Exception as error:
                await _abort(context, method, error)

        return call

    def _places_of(self, method: str) -> _Places:
        return self._waiting_places if method in self._waiting else self._places

    def _let_in(self, method: str, context: Context) -> None:
        if not method.startswith(_OPEN):
            self._admit(method, context)


class _Places:
    """How many calls are served at a time."""

    def __init__(self, places_max: int) -> None:
        self._max = places_max
        self._taken = 0
        self.empty = asyncio.Event()
        """Set while none is served."""
        self.empty.set()

    def __enter__(self) -> None:
        if self._taken >= self._max:
            raise ServerBusyError(self._max)
        self._taken += 1
        self.empty.clear()

    def __exit__(self, *_: object) -> None:
        self._taken -= 1
        if not self._taken:
            self.empty.set()


async def _abort(context: Context, method: str, error: Exception) -> None:
    if isinstance(error, ServiceError):
        status = error.to_status()
    else:
        _log.error("unforeseen error in %s", method, exc_info=error)
        status = ServiceError("internal error").to_status()
    await context.abort_with_status(rpc_status.to_status(status))


class ObservationInterceptor(_Around):
    """Carries the caller's deadline and trace into the call, and records how it went."""

    def __init__(self) -> None:
        super().__init__()
        self._tracer = tracer(__name__)
        self._duration = meter(__name__).create_histogram(
            telemetry_names.METRIC_RPC_SERVER_DURATION, unit="s"
        )

    def wrapped(self, method: str, handler: Any) -> Any:
        return handler if method.startswith(_OPEN) else super().wrapped(method, handler)

    def around_unary(self, method: str, behavior: Unary) -> Unary:
        async def call(request: Any, context: Context) -> Any:
            observed = self._begin(method, context)
            try:
                return await behavior(request, context)
            finally:
                observed.end(context)

        return call

    def around_stream(self, method: str, behavior: Stream) -> Stream:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            observed = self._begin(method, context)
            try:
                async for response in behavior(request, context):
                    yield response
            finally:
                observed.end(context)

        return call

    def _begin(self, method: str, context: Context) -> _Observed:
        deadline.set_remaining_s(context.time_remaining())
        carrier = dict(context.invocation_metadata() or ())
        parent = propagate.extract(carrier)
        service, _, name = method.removeprefix("/").partition("/")
        attributes = {
            telemetry_names.RPC_SYSTEM: "grpc",
            telemetry_names.RPC_SERVICE: service,
            telemetry_names.RPC_METHOD: name,
        }
        span = self._tracer.start_span(
            f"{service}/{name}", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )
        # Never detached: the context is that of this call's own task and ends with it.
        otel_context.attach(trace.set_span_in_context(span, parent))
        return _Observed(span, self._duration, attributes)


class _Observed:
    """A call whose span and duration are recorded when it ends."""

    def __init__(self, span: trace.Span, duration: Any, attributes: dict[str, str]) -> None:
        self._span = span
        self._duration = duration
        self._attributes = attributes
        self._started = time.perf_counter()

    def end(self, context: Context) -> None:
        """Record how the call ended."""
        code = "CANCELLED" if context.cancelled() else _code_name(context.code())
        self._span.set_attribute(telemetry_names.RPC_STATUS_CODE, code)
        self._span.set_status(Status(StatusCode.OK if code == "OK" else StatusCode.ERROR))
        self._span.end()
        labels = self._attributes | {telemetry_names.RPC_STATUS_CODE: code}
        self._duration.record(time.perf_counter() - self._started, labels)


def _code_name(code: Any) -> str:
    if code in {None, 0}:  # not set: the call ended well
        return "OK"
    if isinstance(code, grpc.StatusCode):
        return code.name
    by_number = {member.value[0]: member.name for member in grpc.StatusCode}
    return by_number.get(code, "UNKNOWN")

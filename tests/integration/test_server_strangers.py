"""What callers can take of a server whom it does not know: no places, no memory and no files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb
from fathom.gateway.v1 import gateway_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from common import interceptors
from common.channel import open_channel
from common.config import ServerConfig
from common.errors import UnauthenticatedError, received
from common.server import Server

SERVICE = "fathom.gateway.v1.GatewayService"
GENERATE = f"/{SERVICE}/Generate"
TIMEOUT_S = 30


async def answer(_request: pb.GenerateRequest, _context: Any) -> pb.GenerateResponse:
    """Answer a call at once."""
    return pb.GenerateResponse()


def only_known(_method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Admit callers who say that they are known."""
    if "known" not in dict(context.invocation_metadata() or ()):
        raise UnauthenticatedError("missing", "who are you?")


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    """A server that serves two calls at a time."""
    server = Server("test", ServerConfig(concurrent_rpcs_max=2, drain_s=1.0), admit=only_known)
    behavior = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=pb.GenerateRequest.FromString,
        response_serializer=pb.GenerateResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(SERVICE, {"Generate": behavior})
    server.grpc.add_generic_rpc_handlers((handler,))
    server.serves(SERVICE)
    async with server:
        yield server


async def generate(channel: grpc.aio.Channel, **options: Any) -> pb.GenerateResponse:
    stub = pb_grpc.GatewayServiceStub(channel)
    response: pb.GenerateResponse = await stub.Generate(
        pb.GenerateRequest(), metadata=(("known", "yes"),), timeout=TIMEOUT_S, **options
    )
    return response


async def test_who_is_not_admitted_is_refused_before_the_request_has_come() -> None:
    """Else each such call would hold a place, and the memory of its request, for as long as it
    likes."""
    async with serving() as server, open_channel(server.address) as channel:
        silent: Any = channel.stream_unary(GENERATE)
        for _ in range(10):
            call = silent(timeout=TIMEOUT_S)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("ends", [False, True])
async def test_a_request_that_does_not_come_ends_its_call(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(interceptors, "_REQUEST_S", 0.2)
    async with serving() as server, open_channel(server.address) as channel:
        silent: Any = channel.stream_unary(GENERATE)
        calls = [silent(metadata=(("known", "yes"),), timeout=TIMEOUT_S) for _ in range(2)]
        for call in calls:
            if ends:
                await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert received(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT
            assert received(caught.value).metadata == {"field": "request"}
        monkeypatch.setattr(interceptors, "_REQUEST_S", TIMEOUT_S)
        await generate(channel)


async def test_a_caller_who_goes_before_its_request_came_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as server, open_channel(server.address) as channel:
        silent: Any = channel.stream_unary(GENERATE)
        call = silent(metadata=(("known", "yes"),), timeout=TIMEOUT_S)
        await call.wait_for_connection()
        call.cancel()
        await generate(channel)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_watching_the_health_takes_no_places_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anybody may watch it, without a key and for ever."""
    monkeypatch.setattr(interceptors, "_OPEN_STREAMS_MAX", 3)
    own = [("grpc.use_local_subchannel_pool", 1)]  # gRPC bounds each connection too
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(server.address, options=[*own, ("fathom.number", number)])
            )
            for number in range(5)
        ]
        watches = []
        for channel in channels[:4]:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watches.append(health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await watches[-1].read()

        assert not any(watch.done() for watch in watches[:3])
        assert await watches[3].code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await generate(channels[4])
        health = health_pb2_grpc.HealthStub(channels[4])
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()


async def test_the_health_tells_of_what_it_knows_alone() -> None:
    """It keeps no name that it was asked for: those would stay for ever, 4 MiB each."""
    stack = contextlib.AsyncExitStack()
    server = await stack.enter_async_context(serving())
    async with stack, open_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        nobody = health_pb2.HealthCheckRequest(service="nobody")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(nobody, timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(nobody, timeout=TIMEOUT_S)
        assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()

        ours = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_S)
        assert (await ours.read()).status == HealthCheckResponse.SERVING
        ending = asyncio.create_task(stack.aclose())
        assert (await ours.read()).status == HealthCheckResponse.NOT_SERVING
        ours.cancel()
        await ending


async def test_connections_take_half_of_the_files_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are for the database, for contexts and for connections to services."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    async with serving() as server, open_channel(server.address) as channel:
        await generate(channel)
        host, _, port = server.address.rpartition(":")
        streams = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        # The server greets whom it takes.
        greetings = await asyncio.wait_for(
            asyncio.gather(*[reader.read(1) for reader, _ in streams], return_exceptions=True),
            TIMEOUT_S,
        )
        for _, writer in streams:
            writer.close()
    assert sum(bool(each) and not isinstance(each, BaseException) for each in greetings) == 1

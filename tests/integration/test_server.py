"""The server that every service has, over a real port, with a servicer made for the purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.gateway.v1 import gateway_service_pb2 as pb
from fathom.gateway.v1 import gateway_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider

from common import deadline
from common.channel import open_channel
from common.config import ConfigError, ServerConfig
from common.errors import NotFoundError, ServiceError, received
from common.server import Server
from tests.support.serving import serve

SERVICE = "fathom.gateway.v1.GatewayService"


class Probe(pb_grpc.GatewayServiceServicer):
    """Answers with what it is told by the prompt's tier."""

    async def CountTokens(self, request: Any, context: Any) -> pb.CountTokensResponse:
        return pb.CountTokensResponse()

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse()

    async def SettleCalls(self, request: Any, context: Any) -> pb.SettleCallsResponse:
        return pb.SettleCallsResponse()

    def __init__(self) -> None:
        self.remaining_s: float | None = None
        self.trace_id = 0
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()
        """Set, streams under way end well."""
        self.may_leave = asyncio.Event()
        """Until it is set, streams that were cut off are at their last work."""
        self.may_leave.set()
        self.has_left = False
        self.next: pb_grpc.GatewayServiceAsyncStub | None = None

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        self.remaining_s = deadline.remaining_s()
        self.trace_id = trace.get_current_span().get_span_context().trace_id
        match request.prompt.tier:
            case "not_found":
                raise NotFoundError("runs/7")
            case "defect":
                raise RuntimeError("password=hunter2")
            case "long":
                raise ServiceError("é" * 100_000, thing="€" * 100_000, other="€" * 100_000)
            case "relay":
                assert self.next is not None
                await self.next.Generate(pb.GenerateRequest(), timeout=60)
        return pb.GenerateResponse()

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        yield pb.StreamGenerateResponse(text_delta="a")
        if request.prompt.tier == "not_found":
            raise NotFoundError("runs/7")
        if request.prompt.tier == "defect":
            raise RuntimeError("password=hunter2")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.may_leave.wait()
            self.has_left = True
            raise

    async def BatchGenerate(
        self, request_iterator: AsyncIterator[pb.BatchGenerateRequest], context: Any
    ) -> AsyncIterator[pb.BatchGenerateResponse]:
        async for request in request_iterator:
            yield pb.BatchGenerateResponse(index=request.item.index)


def registers(probe: Probe) -> Any:
    def register(server: Server) -> None:
        pb_grpc.add_GatewayServiceServicer_to_server(probe, server.grpc)
        server.serves(SERVICE)

    return register


def ask(tier: str) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    request.prompt.tier = tier
    return request


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_domain_error_arrives_with_code_reason_and_metadata(streaming: bool) -> None:
    async with serve(registers(Probe())) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if streaming:
                request = pb.StreamGenerateRequest(prompt=ask("not_found").prompt)
                async for _ in stub.StreamGenerate(request, timeout=30):
                    pass
            else:
                await stub.Generate(ask("not_found"), timeout=30)

    error = received(caught.value)
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason_name == "ERROR_REASON_RESOURCE_NOT_FOUND"
    assert error.metadata == {"resource": "runs/7"}


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_text_of_an_unforeseen_exception_stays_on_the_server(streaming: bool) -> None:
    async with serve(registers(Probe())) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if streaming:
                request = pb.StreamGenerateRequest(prompt=ask("defect").prompt)
                async for _ in stub.StreamGenerate(request, timeout=30):
                    pass
            else:
                await stub.Generate(ask("defect"), timeout=30)

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error"
    assert "hunter2" not in repr(caught.value)
    assert received(caught.value).reason_name == "ERROR_REASON_INTERNAL"


async def test_an_error_with_long_texts_arrives_as_what_it_is() -> None:
    """gRPC replaces a status whose headers are too large by one of its own."""
    async with serve(registers(Probe())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.GatewayServiceStub(channel).Generate(ask("long"), timeout=30)

    assert received(caught.value).reason_name == "ERROR_REASON_INTERNAL"
    assert sorted(received(caught.value).metadata) == ["other", "thing"]


@pytest.mark.parametrize("method", ["Generate", "BatchGenerate"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(method: str) -> None:
    """grpc.aio alone answers UNKNOWN with the parser's own words."""
    async with serve(registers(Probe())) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method == "Generate":
                unary: Any = channel.unary_unary(f"/{SERVICE}/{method}")
                await unary(b"\xff\xff\xff", timeout=30)
            else:
                stream: Any = channel.stream_stream(f"/{SERVICE}/{method}")
                async for _ in stream(iter([b"\xff\xff\xff"]), timeout=30):
                    pass

    assert received(caught.value).metadata == {"field": "request"}


async def test_deadline_and_trace_reach_the_service_behind_the_service() -> None:
    """gRPC for Python forwards neither by itself."""
    trace.set_tracer_provider(TracerProvider())
    inner, outer = Probe(), Probe()
    async with serve(registers(inner)) as inner_channel, serve(registers(outer)) as channel:
        outer.next = pb_grpc.GatewayServiceStub(inner_channel)
        parent = trace.get_tracer("test").start_span("client")
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(parent))
        metadata = tuple(headers.items())
        stub = pb_grpc.GatewayServiceStub(channel)
        await stub.Generate(ask("relay"), timeout=30, metadata=metadata)

    assert inner.remaining_s is not None
    assert inner.remaining_s <= 30.5  # on each way gRPC rounds what it sends up
    assert inner.trace_id == outer.trace_id == parent.get_span_context().trace_id


async def test_a_client_that_goes_away_cancels_the_call() -> None:
    probe = Probe()
    async with serve(registers(probe)) as channel:
        call = pb_grpc.GatewayServiceStub(channel).StreamGenerate(
            pb.StreamGenerateRequest(), timeout=30
        )
        await call.read()
        call.cancel()

        await asyncio.wait_for(probe.cancelled.wait(), 30)


async def test_health_tells_of_each_service() -> None:
    async with serve(registers(Probe())) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_calls_above_the_number_are_told_when_to_come_back() -> None:
    """Each of our own refusals says whether waiting helps; gRPC's says nothing."""
    probe = Probe()
    server = Server("test", ServerConfig(concurrent_rpcs_max=2, drain_s=1.0))
    registers(probe)(server)
    # Each connection by itself is within what it may have open at a time.
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        server,
        grpc.aio.insecure_channel(server.address, options=own) as one,
        grpc.aio.insecure_channel(server.address, options=own) as other,
    ):
        stub: Any = pb_grpc.GatewayServiceStub(one)
        streams = [stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20) for _ in range(2)]
        for stream in streams:
            await stream.read()
        stub = pb_grpc.GatewayServiceStub(other)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(), timeout=30)
        probe.release.set()
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.OK
        await stub.Generate(pb.GenerateRequest(), timeout=30)

    error = received(caught.value)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason_name == "ERROR_REASON_SERVER_BUSY"
    assert error.metadata == {"concurrent_rpcs_max": "2"}
    assert error.retry_after_s == 1.0


async def test_calls_that_wait_for_other_work_take_no_places_of_the_rest() -> None:
    """They have as many of their own, and those beyond are told when to come back, on one
    connection too."""
    probe = Probe()
    waiting = {"/fathom.gateway.v1.GatewayService/StreamGenerate"}
    config = ServerConfig(concurrent_rpcs_max=2, drain_s=1.0)
    server = Server("test", config, waiting=waiting)
    registers(probe)(server)
    async with server, open_channel(server.address) as channel:
        stub: Any = pb_grpc.GatewayServiceStub(channel)
        streams = [stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20) for _ in range(2)]
        for stream in streams:
            await stream.read()

        await stub.Generate(pb.GenerateRequest(), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20).read()
        probe.release.set()
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.OK

    error = received(caught.value)
    assert error.reason_name == "ERROR_REASON_SERVER_BUSY"


async def test_draining_lets_calls_end_and_runs_the_callbacks() -> None:
    probe = Probe()
    server = Server("test", ServerConfig(drain_s=30))
    registers(probe)(server)
    server.on_drain(probe.release.set)
    async with server:
        channel = open_channel(server.address)
        stub = pb_grpc.GatewayServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20)
        await call.read()

    assert await call.code() is grpc.StatusCode.OK
    await channel.close()


async def test_the_end_waits_for_what_a_call_that_was_cut_off_still_does() -> None:
    """What it needs, such as the database, is closed after the server."""
    probe = Probe()
    probe.may_leave.clear()
    server = Server("test", ServerConfig())
    registers(probe)(server)
    async with server, open_channel(server.address) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20)
        await call.read()
        call.cancel()
        await asyncio.wait_for(probe.cancelled.wait(), 30)
        asyncio.get_running_loop().call_later(0.2, probe.may_leave.set)

    assert probe.has_left


async def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.server._LEAVING_S_MAX", 0.05)
    probe = Probe()
    probe.may_leave.clear()
    server = Server("test", ServerConfig())
    registers(probe)(server)
    async with server, open_channel(server.address) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(), timeout=20)
        await call.read()
        call.cancel()
        await asyncio.wait_for(probe.cancelled.wait(), 30)

    assert not probe.has_left
    probe.may_leave.set()


async def test_the_address_file_names_the_bound_port(tmp_path: Path) -> None:
    file = tmp_path / "address"
    async with Server("test", ServerConfig(address_file=file)) as server:
        assert file.read_text() == f"{server.address}\n"
        assert not server.address.endswith(":0")


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with Server("first", ServerConfig()) as first:
        with pytest.raises(ConfigError, match="is it in use"):
            async with Server("second", ServerConfig(listen=first.address)):
                pass


async def test_a_message_over_the_limit_is_refused_and_one_under_it_is_not() -> None:
    async with serve(registers(Probe()), message_bytes_max=1000) as channel:
        stub = pb_grpc.GatewayServiceStub(channel)
        small = pb.GenerateRequest()
        small.prompt.tier = "x" * 900
        await stub.Generate(small, timeout=30)
        small.prompt.tier = "x" * 1100
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(small, timeout=30)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

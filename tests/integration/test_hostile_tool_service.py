"""An operator's tool service that was taken over, or is none: what its answers can do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from fathom.tools.v1 import tool_service_pb2 as wire

from orchestrator.errors import HostToolFailedError
from orchestrator.profiles.profile import RESULT_BYTES_MAX, HostTool
from orchestrator.profiles.tool_client import CallFacts, ToolClient

TIMEOUT_S = 30.0
FACTS = CallFacts(
    tenant="acme",
    run="runs/1",
    root="runs/1",
    turn=1,
    cell=1,
    request_id="1/1/1/t1",
    profile="profiles/p",
)
METHOD = "fathom.tools.v1.ToolService"
Behaviour = Callable[[bytes, Any], Awaitable[bytes]]


def tool(endpoint: str) -> HostTool:
    return HostTool(
        name="lookup",
        endpoint=endpoint,
        description="",
        arguments_schema_json="{}",
        result_schema_json="",
        calls_max=1,
        time_max_s=TIMEOUT_S,
        argument_bytes_max=1000,
        result_bytes_max=1000,
        concurrency_max=1,
        tenants=(),
    )


async def answer_of(endpoint: str, *, timeout_s: float = TIMEOUT_S) -> str:
    async with ToolClient(None) as client:
        return await client.call(tool(endpoint), "{}", FACTS, timeout_s=timeout_s)


async def failure_of(endpoint: str, *, timeout_s: float = TIMEOUT_S) -> HostToolFailedError:
    with pytest.raises(HostToolFailedError) as failed:
        await answer_of(endpoint, timeout_s=timeout_s)
    return failed.value


@contextlib.asynccontextmanager
async def service(behaviour: Behaviour, **options: Any) -> AsyncIterator[str]:
    """Serve a behaviour that gives bytes of any kind."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)], **options)
    handlers: dict[str, Any] = {"CallTool": grpc.unary_unary_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def socket_server(
    behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    server = await asyncio.start_server(behaviour, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_no_credential_reaches_a_tool_service() -> None:
    seen: list[tuple[str, str]] = []

    async def answer(_: bytes, context: Any) -> bytes:
        seen.extend((key, value) for key, value in context.invocation_metadata())
        return wire.CallToolResponse(result_json="1").SerializeToString()

    async with service(answer) as endpoint:
        assert await answer_of(endpoint) == "1"

    assert {key for key, _ in seen} <= {"user-agent", "traceparent", "tracestate"}


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_an_answer_of_any_size_is_refused(compression: grpc.Compression | None) -> None:
    """In gzip it would be a thousandth of its size on the way."""

    async def answer(_: bytes, context: Any) -> bytes:
        return bytes(RESULT_BYTES_MAX + (64 << 20))

    async with service(answer, compression=compression) as endpoint:
        failure = await failure_of(endpoint)

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.metadata["why"] == "error"


async def test_bytes_that_are_no_message_are_an_error_of_the_tool() -> None:
    """It was an internal error, and left a call behind of which nothing was known."""

    async def answer(_: bytes, context: Any) -> bytes:
        return b"\xff" * 1000

    async with service(answer) as endpoint:
        failure = await failure_of(endpoint)

    assert failure.metadata["why"] == "result"
    assert failure.message == "lookup: its answer is no CallToolResponse"


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
async def test_every_status_of_a_tool_is_an_error_of_the_tool(code: grpc.StatusCode) -> None:
    """CANCELLED is not ours to be cancelled by, and UNAUTHENTICATED not the run's."""

    async def answer(_: bytes, context: Any) -> bytes:
        await context.abort(code, "said")
        raise AssertionError

    async with service(answer) as endpoint:
        failure = await failure_of(endpoint)

    assert failure.metadata["tool"] == "lookup"
    assert failure.message.startswith("lookup: ")


async def test_what_a_tool_says_is_cut_and_commands_nothing() -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.INTERNAL, "\x1b[2J\0\r\n\u202e" + "x" * 5_000)
        raise AssertionError

    async with service(answer) as endpoint:
        failure = await failure_of(endpoint)

    assert len(failure.message) < 2_100
    assert failure.message.isprintable(), ascii(failure.message[:60])


async def test_metadata_without_end_is_an_error_of_the_tool() -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x", "y" * (1 << 20)),))
        return wire.CallToolResponse(result_json="1").SerializeToString()

    async with service(answer) as endpoint:
        failure = await failure_of(endpoint)

    assert failure.metadata["tool"] == "lookup"


async def test_a_tool_that_never_answers_is_given_up() -> None:
    hold = asyncio.Event()

    async def answer(_: bytes, context: Any) -> bytes:
        await hold.wait()
        return b""

    async with service(answer) as endpoint:
        failure = await failure_of(endpoint, timeout_s=0.2)
        hold.set()

    assert failure.metadata["why"] == "time_max"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        b"\0" * 10_000,
        # Settings, and headers of a stream that are cut off.
        b"\0\0\0\4\0\0\0\0\0" + b"\0\1\0\1\4\0\0\0\1" + b"\x88",
    ],
)
async def test_a_server_that_is_none_is_unreachable_or_too_slow(data: bytes) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await reader.read(100)
        writer.transport.abort()

    async with socket_server(behave) as endpoint:
        failure = await failure_of(endpoint, timeout_s=5.0)

    assert failure.metadata["why"] in {"unreachable", "time_max"}
    assert endpoint not in failure.message

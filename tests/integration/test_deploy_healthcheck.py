"""The health check that compose runs, against a server as the services have it."""

from __future__ import annotations

import asyncio
import sys

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from common import healthcheck
from common.config import ServerConfig
from common.server import Server

SERVICE = "fathom.gateway.v1.GatewayService"


async def check(*arguments: str) -> int:
    """Run the check in a thread, as its own process would: the server needs the loop."""
    return await asyncio.to_thread(healthcheck.main, [*arguments, "--timeout-s", "5"])


async def test_a_server_that_serves_is_healthy() -> None:
    server = Server("test", ServerConfig())
    server.serves(SERVICE)
    async with server:
        assert await check(server.address) == 0
        assert await check(server.address, "--service", SERVICE) == 0


async def test_a_service_that_the_server_does_not_have_is_not_healthy() -> None:
    async with Server("test", ServerConfig()) as server:
        assert await check(server.address, "--service", SERVICE) == 1


async def test_a_server_that_has_gone_is_not_healthy() -> None:
    async with Server("test", ServerConfig()) as server:
        address = server.address

    assert await check(address) == 1


async def test_a_server_that_drains_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    """It answers still, with NOT_SERVING, so that no more work is sent to it."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await servicer.enter_graceful_shutdown()
    try:
        assert await check(f"127.0.0.1:{port}") == 1
    finally:
        await server.stop(None)

    assert "not serving" in capsys.readouterr().err


async def test_the_command_of_the_container_tells_by_its_exit_status() -> None:
    async with Server("test", ServerConfig()) as server:
        command = [sys.executable, "-m", "common.healthcheck", server.address]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 0
    assert said.decode() == f"server at {server.address}: serving\n"

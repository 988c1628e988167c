"""Channels between services, where the other side falls silent."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from common import channel
from common.channel import open_channel
from common.config import ServerConfig
from common.server import Server
from tests.support.cutting_proxy import Gate, cutting_proxy
from tests.support.eventually import eventually

TIMEOUT_S = 60
PING_BYTES = 17


@pytest.mark.parametrize("pings_before", [0, 3])
async def test_a_call_that_only_listens_ends_where_the_other_side_falls_silent(
    monkeypatch: pytest.MonkeyPatch, pings_before: int
) -> None:
    """Also after it has sent nothing but pings for a while: a service that waits for another
    machine, which has lost its power, would wait for as long as the call may take."""
    monkeypatch.setattr(channel, "_KEEPALIVE_TIME_MS", 300)
    monkeypatch.setattr(channel, "_KEEPALIVE_TIMEOUT_MS", 1_000)
    gate = Gate()
    async with (
        Server("test", ServerConfig(drain_s=0.1)) as server,
        cutting_proxy(server.address, gate=gate) as address,
        open_channel(address) as opened,
    ):
        health: Any = HealthStub(opened)
        watch = health.Watch(HealthCheckRequest(), timeout=TIMEOUT_S)
        first = await watch.read()
        heard = gate.sent_bytes
        await eventually(lambda: gate.sent_bytes >= heard + pings_before * PING_BYTES)
        gate.flowing.clear()
        began = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        took_s = asyncio.get_running_loop().time() - began

    assert first.status == HealthCheckResponse.SERVING
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # A ping is waited for for 60 s, and after two of them one is sent a minute, unless told.
    assert took_s < TIMEOUT_S / 2

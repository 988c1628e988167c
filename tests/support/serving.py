"""Run servicers on a real loopback port, with the same server that the services use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from common.channel import open_channel
from common.config import ServerConfig
from common.server import MESSAGE_BYTES_MAX, Server


@asynccontextmanager
async def serve(
    register: Callable[[Server], None],
    *,
    config: ServerConfig | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve what `register` adds to the server and yield a channel to it.

    `register` is called as `register(server)`; it adds servicers to `server.grpc`.
    """
    settings = config or ServerConfig(drain_s=1.0)
    server = Server("test", settings, message_bytes_max=message_bytes_max)
    register(server)
    async with (
        server,
        open_channel(
            server.address, message_bytes_max=message_bytes_max, credentials=credentials
        ) as channel,
    ):
        yield channel

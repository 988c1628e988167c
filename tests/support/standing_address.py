"""An address that stays while what it leads to is killed and started anew elsewhere; where it leads
to several, connections go to them in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class StandingAddress:
    """A TCP proxy to wherever `target` is; connections are closed at once where it is nowhere."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        """Each `host:port`; none where it leads nowhere."""
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        """`host:port` of the only target, or nothing."""
        return self.targets[0] if self.targets else ""

    @target.setter
    def target(self, target: str) -> None:
        self.targets = [target] if target else []

    @property
    def address(self) -> str:
        """`host:port` that stays."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.targets:
            return
        self._turn += 1
        host, _, port = self.targets[self._turn % len(self.targets)].rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        pumps = {
            asyncio.create_task(_pump(reader, there_writer)),
            asyncio.create_task(_pump(there_reader, writer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            there_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()

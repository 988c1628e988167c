"""TCP proxies that do what networks do: one cuts connections after so many bytes from the client,
one can be closed and opened again, or swallow what comes without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence


class Gate:
    """Whether connections are let through a proxy."""

    def __init__(self) -> None:
        self.is_open = True
        self.flowing = asyncio.Event()
        """Unset while bytes are kept, as by a network without a way or a server that stands still;
        connections stay, and new ones come about."""
        self.flowing.set()
        self.entered = 0
        """Connections that were let in."""
        self.sent_bytes = 0
        """What has passed, in either direction."""
        self._connections: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Cut what is connected, and let nobody in."""
        self.is_open = False
        self.cut()

    def cut(self) -> None:
        """Cut what is connected."""
        for task in self._connections:
            task.cancel()

    def open(self) -> None:
        """Let everybody in."""
        self.is_open = True

    def enter(self) -> None:
        """Note the current task as a connection."""
        task = asyncio.current_task()
        assert task is not None
        self.entered += 1
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)


@contextlib.asynccontextmanager
async def cutting_proxy(
    address: str, cut_after_bytes: Sequence[int] = (), gate: Gate | None = None
) -> AsyncIterator[str]:
    """Yield an address that leads to another one. Each connection in turn is cut after its number
    of bytes; those after the last number are left alone. A closed gate lets no connection in."""
    host, _, port = address.rpartition(":")
    budgets = list(cut_after_bytes)
    gate = gate or Gate()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not gate.is_open:
            writer.transport.abort()
            return
        gate.enter()
        budget = budgets.pop(0) if budgets else 1 << 60
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        back = asyncio.create_task(_pump(there_reader, writer, 1 << 60, gate))
        try:
            with contextlib.suppress(asyncio.CancelledError):  # cut, or the end of the proxy
                await _pump(reader, there_writer, budget, gate)
        finally:
            for end in (writer, there_writer):
                end.transport.abort()
            back.cancel()
            await asyncio.wait({back})

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        gate.cut()
        await server.wait_closed()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget_bytes: int, gate: Gate
) -> None:
    """Copy up to so many bytes, while they flow."""
    with contextlib.suppress(ConnectionError):
        while budget_bytes > 0:
            data = await reader.read(min(1 << 16, budget_bytes))
            if not data:
                return
            budget_bytes -= len(data)
            await gate.flowing.wait()
            gate.sent_bytes += len(data)
            writer.write(data)
            await writer.drain()

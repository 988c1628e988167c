"""A worker in the test's own process: it speaks the protocol, until its script says otherwise.

Its supervisor is the real one, with a process that does nothing in the worker's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from sandbox_service import frames

COMMAND = ("true",)
"""What stands for the worker process; its number of a socket is one more argument."""
_RECEIVE_BYTES = 1 << 18
_FDS_MAX = 64


@dataclass(frozen=True)
class Script:
    """What a puppet does in each of its cells."""

    says: tuple[bytes, ...] | None = None
    """Sent in the place of what a worker says; None where it says that the cell ended well."""
    spoils: Callable[[int], object] = bool
    """Called with the descriptor of the session's top layer, before anything is said."""


class PuppetWorker:
    """One worker with one session at a time: opens it, and runs its cells by the script."""

    def __init__(self, connection: socket.socket, script: Script) -> None:
        """Take a connection to the supervisor, and what to do in each cell."""
        connection.setblocking(False)
        self._connection = connection
        self._script = script
        self._fds: list[int] = []
        self._layers: list[int] = []
        self._reader = frames.FrameReader(frames.ToWorker)
        self._running = asyncio.create_task(self._serve())

    async def end(self) -> None:
        """Disconnect."""
        self._running.cancel()
        await asyncio.wait((self._running,))
        self._connection.close()
        self._close(self._fds)
        self._close(self._layers)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._connection, ready.set)
        try:
            while data := await self._received(ready):
                for frame in self._reader.feed(data):
                    await self._handle(frame)
        except OSError:  # the supervisor has ended it
            return
        finally:
            loop.remove_reader(self._connection)

    async def _received(self, ready: asyncio.Event) -> bytes:
        """Return what came, empty at the end."""
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                data, fds, _, _ = socket.recv_fds(self._connection, _RECEIVE_BYTES, _FDS_MAX)
                self._fds += fds
                return data

    async def _handle(self, frame: object) -> None:
        if isinstance(frame, frames.Start):
            await self._send(frames.Started())
        elif isinstance(frame, frames.Relayer):
            self._take_layers(frame.layers)
        elif isinstance(frame, frames.Open):
            self._take_layers(frame.layers)
            await self._send(frames.Opened(session=frame.session, memory_bytes=1))
            if not frame.is_restored:
                await self._send(frames.Saved(session=frame.session, execution=0))
        elif isinstance(frame, frames.Close):
            await self._send(frames.Closed(session=frame.session))
        elif isinstance(frame, frames.Run):
            await self._run(frame)

    async def _run(self, cell: frames.Run) -> None:
        self._script.spoils(self._layers[-1])
        if self._script.says is None:
            await self._send(output(cell.session, cell.execution))
            await self._send(ended(cell.session, cell.execution))
            await self._send(frames.Saved(session=cell.session, execution=cell.execution))
        for data in self._script.says or ():
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    def _take_layers(self, finished: int) -> None:
        self._close(self._layers)
        self._layers, self._fds = self._fds[: finished + 1], self._fds[finished + 1 :]

    @staticmethod
    def _close(fds: list[int]) -> None:
        while fds:
            os.close(fds.pop())

    async def _send(self, frame: frames.FromWorker) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, frames.encode(frame))


def output(session: int = 1, execution: int = 1, text: str = "well\n") -> frames.Output:
    return frames.Output(session=session, execution=execution, stream="stdout", text=text)


def ended(session: int = 1, execution: int = 1) -> frames.Ended:
    return frames.Ended(
        session=session,
        execution=execution,
        ending="completed",
        state_kept=True,
        failure=None,
        final=None,
        variables=[],
        output_bytes=0,
        output_bytes_dropped=0,
        own_time_s=0.0,
        wait_time_s=0.0,
        fuel_used=0,
        memory_bytes=1,
    )


@contextmanager
def puppet_workers(script: Script) -> Iterator[list[PuppetWorker]]:
    """Make every worker that is started here a puppet; only the first one has the script."""
    puppets: list[PuppetWorker] = []
    make_pair = socket.socketpair

    def socketpair() -> tuple[socket.socket, socket.socket]:
        ours, theirs = make_pair()
        puppets.append(PuppetWorker(theirs.dup(), Script() if puppets else script))
        return ours, theirs

    with patch("sandbox_service.worker_process.socket.socketpair", socketpair):
        yield puppets

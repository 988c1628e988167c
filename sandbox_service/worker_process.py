"""One worker process as the supervisor holds it: started, spoken to, and ended for misbehaving.

A worker runs untrusted code. A frame that the protocol does not allow at that moment ends the
process; its sessions then learn that they are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from sandbox_service import frames
from sandbox_service.completion import to_its_end
from sandbox_service.config import PREFIX
from sandbox_service.guest_build import GuestBuild
from sandbox_service.jail.wall import Wall
from sandbox_service.jail.walls import refusal
from sandbox_service.worker_log import WorkerLog
from sandbox_service.worker_session import WorkerLostError, WorkerSession

_log = logging.getLogger(__name__)
_security = logging.getLogger("fathom.security")
_RECEIVE_BYTES = 1 << 18
START_TIMEOUT_S = 30.0
OPEN_TIMEOUT_S = 180.0
"""Loading contexts has a limit inside the worker; this one is for a worker without it."""
_SEND_TIMEOUT_S = 10.0
"""A worker always reads; one that does not is broken."""
_OWN_BYTES = 512 << 20
"""Memory of a worker's own: several times what it takes without any session."""
_OWN_BYTES_A_SESSION = 256 << 20
"""For frames and values on their way, a few times the largest."""
WORKER_COMMAND = (sys.executable, "-I", "-m", "sandbox_service.worker")


class WorkerStartError(Exception):
    """A worker could not load the guest."""


class WorkerProcess:
    """A running worker with its sessions."""

    def __init__(
        self,
        build: GuestBuild,
        command: Sequence[str] = WORKER_COMMAND,
        *,
        niceness: int = 0,
        require_jail: bool = False,
    ) -> None:
        """Start the process; call `greet` before anything else, and `serve` for as long as it
        is to live. The command gets the number of its socket as one more argument.

        Only to be called by a thread that lives as long as this process: a jailed worker ends
        with the thread that started it.
        """
        self._build = build
        self._niceness = niceness
        self._require_jail = require_jail
        self.walls: list[Wall] = []
        """The walls around it, as it says, once it is greeted."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        # Executed anew, never forked: nothing of this process's memory is in it.
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
            )
        assert self._process.stderr is not None
        self._log = WorkerLog(os.dup(self._process.stderr.fileno()), self._process.pid)
        self._process.stderr.close()
        self._sending = asyncio.Lock()
        self._unsent = 0
        self._reader = frames.FrameReader(frames.FromWorker)
        self._sessions: dict[int, WorkerSession] = {}
        self._number = 0
        self.death = ""
        """Why it is dead; empty while it lives."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def made_a_deadly_call(self) -> bool:
        """Whether the kernel ended it for a system call that only an attack makes; to be asked
        once it has ended."""
        return self._process.returncode == -signal.SIGSYS

    @property
    def session_count(self) -> int:
        """Sessions that it holds, those being closed included."""
        return len(self._sessions)

    @property
    def memory_bytes_max(self) -> int:
        """Memory that it can have come by honestly, with the sessions that it has now."""
        return _OWN_BYTES + sum(
            session.limits.memory_bytes_max + _OWN_BYTES_A_SESSION
            for session in self._sessions.values()
        )

    async def greet(self) -> None:
        """Have the worker load the guest; raises WorkerStartError where it cannot."""
        self._log.start()
        try:
            await self._send(
                frames.Start(
                    compiled=str(self._build.compiled.absolute()),
                    library=str(self._build.library.absolute()),
                    warm_images={
                        profile: str(path.absolute())
                        for profile, path in self._build.warm_images.items()
                    },
                    niceness=self._niceness,
                )
            )
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await self._first_frame()
        except (OSError, TimeoutError, frames.FrameError, WorkerLostError) as error:
            self.kill(f"it did not start: {error}")
            raise WorkerStartError(f"it did not start: {error}") from error
        if not isinstance(first, frames.Started) or first.problem:
            problem = first.problem if isinstance(first, frames.Started) else "wrong first frame"
            self.kill(f"it did not start: {problem}")
            raise WorkerStartError(self.death)
        self.walls = first.walls
        if self._require_jail and (reason := refusal(first.walls)):
            self.kill(reason)
            raise WorkerStartError(f"{reason}, or set {PREFIX}REQUIRE_JAIL=false to do without")

    async def serve(self) -> None:
        """Handle the worker's frames until it is dead; then its sessions know and it is gone."""
        try:
            await self._receive()
            self.kill("the worker process ended")
            self._lose_sessions(is_certain=True)
        except frames.FrameError as error:
            _security.error("worker %d broke the protocol and is ended: %s", self.pid, error)
            self.kill(f"the worker broke the protocol: {error}")
        except OSError as error:
            _log.error("worker %d is ended: %s", self.pid, error)
            self.kill(f"the worker cannot be heard: {error}")
        finally:
            await self.end()

    async def _receive(self) -> None:
        """Handle frames until no more can come."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):  # it died with frames of ours unread
            while data := await loop.sock_recv(self._socket, _RECEIVE_BYTES):
                for frame in self._reader.feed(data):
                    self._dispatch(frame)

    async def end(self) -> None:
        """End the process, if it still runs, and wait until it is gone."""
        self.kill("the service is shutting down")
        self._lose_sessions(is_certain=False)
        self._socket.close()
        try:
            await asyncio.to_thread(self._process.wait)
        finally:
            self._log.close()

    def kill(self, cause: str) -> None:
        """End the process at once; the first cause given is the one that counts.

        Its sessions learn of it from `serve`, after the frames that it had sent before: those
        say whether it was writing to their layers.
        """
        if self.death:
            return
        self.death = cause
        self._process.kill()
        with contextlib.suppress(OSError):  # it may be disconnected already
            self._socket.shutdown(socket.SHUT_RDWR)  # no frame comes, and no layer changes, unseen

    def _lose_sessions(self, *, is_certain: bool) -> None:
        for session in self._sessions.values():
            session.lose(self.death, is_certain=is_certain)
        self._sessions.clear()

    async def open(
        self, opening: frames.Open, fds: Sequence[int], timeout_s: float = OPEN_TIMEOUT_S
    ) -> tuple[WorkerSession, frames.Opened]:
        """Start a session under a number of its own; the worker gets copies of the open files.

        Raises OpenFailedError or WorkerLostError.
        """
        self._number += 1
        opening = msgspec.structs.replace(opening, session=self._number)
        session = WorkerSession(
            self._number, opening.limits, self._send, self.kill, is_restored=opening.is_restored
        )
        self._sessions[session.number] = session
        try:
            await self._send(opening, fds)
            async with asyncio.timeout(timeout_s):
                return session, await session.opened()
        except TimeoutError as error:
            self.kill("a worker did not open a session in time")
            raise WorkerLostError(self.death) from error
        except asyncio.CancelledError:
            await session.close()
            raise

    async def _first_frame(self) -> object:
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self._socket, _RECEIVE_BYTES)
            if not data:
                raise OSError("it ended")
            for frame in self._reader.feed(data):
                return frame

    def _dispatch(self, frame: object) -> None:
        if isinstance(frame, frames.Started):
            raise frames.FrameError("a second start")
        number = getattr(frame, "session", None)
        session = self._sessions.get(number) if isinstance(number, int) else None
        if session is None:
            raise frames.FrameError(f"{type(frame).__name__} of an unknown session")
        session.receive(frame)
        if session.is_gone:
            del self._sessions[session.number]

    async def _send(self, frame: frames.ToWorker, fds: Sequence[int] = ()) -> None:
        if self.death:
            raise WorkerLostError(self.death)
        data = frames.encode(frame)
        if not fds and not self._unsent:
            data = data[self._sent_at_once(data) :]
        if data:
            await self._send_whole(data, fds)

    def _sent_at_once(self, data: bytes) -> int:
        """Send what the socket takes without waiting, as a rule all; return the bytes sent."""
        try:
            return self._socket.send(data)
        except OSError:  # also where it is full; the way that waits says what it is
            return 0

    async def _send_whole(self, data: bytes, fds: Sequence[int]) -> None:
        """Send a frame to its end, also for a caller that is cancelled meanwhile.

        A frame that is cut off would make nonsense of those of all other sessions.
        """
        self._unsent += 1
        await to_its_end(self._send_waiting(data, fds))

    async def _send_waiting(self, data: bytes, fds: Sequence[int]) -> None:
        async with self._sending:
            try:
                async with asyncio.timeout(_SEND_TIMEOUT_S):
                    if fds:
                        data = data[await self._send_with_fds(data, fds) :]
                    await asyncio.get_running_loop().sock_sendall(self._socket, data)
            except (OSError, TimeoutError) as error:
                problem = error.strerror or "it takes nothing any more"  # where time is up
                self.kill(f"the worker cannot be reached: {problem}")
                raise WorkerLostError(self.death) from error
            finally:
                self._unsent -= 1

    async def _send_with_fds(self, data: bytes, fds: Sequence[int]) -> int:
        """Send the beginning of a frame together with open files; return the bytes sent."""
        while True:
            try:
                return socket.send_fds(self._socket, [data[: 1 << 16]], list(fds))
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._socket, _set, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._socket)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)

"""The worker process: sessions of untrusted code, and one socket to the supervisor.

Started by `pool` with an empty environment. It opens the prepared guest, and then nothing any
more: the walls of `jail` are raised before its first session, and contexts come as open files.
It ends when its socket does.
"""

from __future__ import annotations

import codecs
import dataclasses
import mmap
import os
import socket
import sys
import threading
from pathlib import Path

import wasmtime

from common.allocator import return_large_pieces, share_arenas
from sandbox_service import frames
from sandbox_service.engine import THREAD_STACK_BYTES, GuestEngine
from sandbox_service.jail import privileges
from sandbox_service.jail.walls import WALLS, JailOptions, raise_walls
from sandbox_service.worker.contexts import Contexts
from sandbox_service.worker.guest_session import GuestHost, GuestSession, Layers
from sandbox_service.worker.image import ChangeFinder, WarmImage
from sandbox_service.worker.ticker import Ticker
from sandbox_service.worker.turns import Turns

_ENCODINGS = ("utf-8", "ascii", "latin-1", "utf-16-le", "utf-32-le")
"""Python loads an encoding's module when it is first used; later no file can be opened."""
_RECEIVE_BYTES = 1 << 18
_FDS_MAX = 253
"""What the kernel passes at once; an Open has fewer."""
_LARGE_BYTES = 1 << 20
"""Guests that send larger values would leave a worker with tens of megabytes for good."""
_SWITCH_INTERVAL_S = 0.0005
"""A guest's calls to the host wait for the interpreter lock; let them not wait long."""


class Worker:
    """All sessions of this process."""

    def __init__(self, connection: socket.socket, parent_pid: int) -> None:
        """Serve a socket; the process belongs to its parent and ends with it."""
        self._connection = connection
        self._jail = JailOptions(
            keep_fds=(connection.fileno(),),
            socket_fd=connection.fileno(),
            parent_pid=parent_pid,
        )
        # At once, so that what is open later is what was opened here.
        self._walls = raise_walls(self._jail, WALLS[:1])
        self._sending = threading.Lock()
        self._sessions: dict[int, GuestSession] = {}
        self._host: GuestHost | None = None
        self._fds: list[int] = []

    def serve(self) -> None:
        """Handle frames until the supervisor closes the socket."""
        reader = frames.FrameReader(frames.ToWorker)
        while True:
            data, fds, flags, _ = socket.recv_fds(self._connection, _RECEIVE_BYTES, _FDS_MAX)
            if not data:
                return
            if flags & socket.MSG_CTRUNC:
                raise OSError("this process has too many open files for another session")
            self._fds += fds
            for frame in reader.feed(data):
                self._handle(frame)

    def send(self, frame: frames.FromWorker) -> None:
        """Send a frame; any thread may."""
        if isinstance(frame, frames.Closed | frames.Lost):  # its last one
            self._sessions.pop(frame.session, None)
        data = frames.encode(frame)
        with self._sending:
            self._connection.sendall(data)

    def _handle(self, frame: object) -> None:
        if isinstance(frame, frames.Start):
            self._load(frame)
        elif isinstance(frame, frames.Open):
            self._open(frame)
        elif isinstance(frame, frames.Relayer):
            self._relayer(frame)
        else:
            self._hand_over(frame)

    def _hand_over(self, frame: object) -> None:
        """Give a frame to its session; one that has just ended needs it no more."""
        session = self._sessions.get(getattr(frame, "session", -1))
        if session is None:
            return
        if isinstance(frame, frames.Run):
            session.inbox.put(frame)
        elif isinstance(frame, frames.SubCallAnswers):
            session.answer(frame)
        elif isinstance(frame, frames.Interrupt):
            session.interrupt(frame.execution)
        elif isinstance(frame, frames.Close):
            session.close()

    def _load(self, start: frames.Start) -> None:
        try:
            engine = GuestEngine(Path(start.compiled))
            ticker = Ticker(engine)
            with privileges.put_aside():
                changes = ChangeFinder()
            self._host = GuestHost(
                engine=engine,
                warm_images={
                    profile: WarmImage(Path(path)) for profile, path in start.warm_images.items()
                },
                changes=changes,
                library=_mapped(Path(start.library)),
                turns=Turns(len(os.sched_getaffinity(0))),
                running=ticker.running,
                send=self.send,
            )
        except (OSError, wasmtime.WasmtimeError) as error:
            self.send(frames.Started(problem=str(error)[:2000] or "unknown"))
            return
        for encoding in _ENCODINGS:
            codecs.lookup(encoding)
        jail = dataclasses.replace(self._jail, niceness=start.niceness)
        self._walls += raise_walls(jail, WALLS[1:])
        ticker.start()
        self.send(frames.Started(walls=self._walls))

    def _open(self, frame: frames.Open) -> None:
        if self._host is None:
            raise frames.FrameError("a session before the guest")
        layers = Layers(self._taken_fds(frame.layers), *self._taken_fds(1))
        files = sum(1 + mount.has_index for mount in frame.mounts)
        contexts = Contexts(frame.mounts, self._taken_fds(files), frame.limits.memory_bytes_max)
        try:
            session = GuestSession(frame, layers, contexts, self._host)
            self._sessions[frame.session] = session
            session.start()
        except (OSError, RuntimeError, KeyError) as error:  # no file, thread or such profile
            contexts.close()
            layers.close()
            self.send(frames.Lost(session=frame.session, cause=str(error)[:4096]))

    def _relayer(self, frame: frames.Relayer) -> None:
        layers = Layers(self._taken_fds(frame.layers), *self._taken_fds(1))
        session = self._sessions.get(frame.session)
        if session is None:
            layers.close()
        else:
            session.inbox.put(layers)

    def _taken_fds(self, count: int) -> list[int]:
        """Take over the next open files that came along, in the order they were sent."""
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken


def _mapped(path: Path) -> mmap.mmap:
    """Map a file for reading: its pages are the kernel's, and all workers share them."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    share_arenas()
    return_large_pieces(_LARGE_BYTES)
    threading.stack_size(THREAD_STACK_BYTES)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    connection = socket.socket(fileno=int(sys.argv[1]))
    Worker(connection, os.getppid()).serve()
    # Sessions may still be inside WebAssembly; nobody waits for them any more.
    os._exit(0)

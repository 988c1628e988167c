"""The worker process: sessions of untrusted code, and one socket to the supervisor.

Started by `pool` with an empty environment. It opens the prepared guest and nothing else;
contexts come as open files. It ends when its socket does.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import wasmtime

from sandbox_service import frames
from sandbox_service.contexts import Contexts
from sandbox_service.engine import THREAD_STACK_BYTES, GuestEngine
from sandbox_service.guest_session import GuestHost, GuestSession
from sandbox_service.image import ChangeFinder, WarmImage

_TICK_S = 0.005
_LINGER_TICKS = 40
"""Without any guest it goes on this long, so that cells in quick succession do not wake it."""
_RECEIVE_BYTES = 1 << 18
_FDS_MAX = 16
_SWITCH_INTERVAL_S = 0.0005
"""A guest's calls to the host wait for the interpreter lock; let them not wait long."""


class Ticker:
    """Advances the engine's epoch every few milliseconds, while any guest runs."""

    def __init__(self, engine: GuestEngine) -> None:
        self._engine = engine
        self._guests = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin ticking."""
        threading.Thread(target=self._tick, name="ticker", daemon=True).start()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick at least as long as the block lasts."""
        with self._changed:
            self._guests += 1
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._guests -= 1

    def _tick(self) -> None:
        idle_ticks = 0
        while True:
            idle_ticks = 0 if self._guests else idle_ticks + 1
            if idle_ticks > _LINGER_TICKS:
                with self._changed:
                    while not self._guests:
                        self._changed.wait()
            time.sleep(_TICK_S)
            self._engine.tick()


class Worker:
    """All sessions of this process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._sessions: dict[int, GuestSession] = {}
        self._host: GuestHost | None = None
        self._fds: list[int] = []

    def serve(self) -> None:
        """Handle frames until the supervisor closes the socket."""
        reader = frames.FrameReader(frames.ToWorker)
        while True:
            data, fds, _, _ = socket.recv_fds(self._connection, _RECEIVE_BYTES, _FDS_MAX)
            if not data:
                return
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
            self._host = GuestHost(
                engine=engine,
                warm=WarmImage(Path(start.warm_image)),
                changes=ChangeFinder(),
                library=Path(start.library).read_bytes(),
                running=ticker.running,
                send=self.send,
            )
        except (OSError, wasmtime.WasmtimeError) as error:
            self.send(frames.Started(problem=str(error)[:2000] or "unknown"))
            return
        ticker.start()
        self.send(frames.Started())

    def _open(self, frame: frames.Open) -> None:
        if self._host is None:
            raise frames.FrameError("a session before the guest")
        fds, self._fds = self._fds[: len(frame.mounts)], self._fds[len(frame.mounts) :]
        contexts = Contexts(frame.mounts, fds)
        try:
            session = GuestSession(frame.session, frame.limits, contexts, self._host)
            self._sessions[frame.session] = session
            session.start()
        except (OSError, RuntimeError) as error:  # no file or no thread left for it
            contexts.close()
            self.send(frames.Lost(session=frame.session, cause=str(error)[:4096]))


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    threading.stack_size(THREAD_STACK_BYTES)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    connection = socket.socket(fileno=int(sys.argv[1]))
    Worker(connection).serve()
    # Sessions may still be inside WebAssembly; nobody waits for them any more.
    os._exit(0)


if __name__ == "__main__":
    main()

"""A session in a worker, seen from the supervisor: what may be sent to it, and what may come.

Holds the state that decides whether a frame is allowed. It does not know names, time to live
or gateways; sessions.py does.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sandbox_service import frames
from sandbox_service.limits import Limits


class WorkerLostError(Exception):
    """The worker died, or the session broke inside it."""


class OpenFailedError(Exception):
    """The worker could not start the session."""

    def __init__(self, failed: frames.OpenFailed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Send(Protocol):
    """Sends a frame to the worker."""

    def __call__(self, frame: frames.ToWorker, fds: Sequence[int] = ()) -> Awaitable[None]:
        """Raise WorkerLostError where the worker is dead."""


class _State(enum.Enum):
    OPENING = "opening"
    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting for sub-calls"
    CLOSING = "closing"
    GONE = "gone"


class WorkerSession:
    """One session, used by one caller at a time."""

    def __init__(
        self, number: int, limits: Limits, send: Send, kill_worker: Callable[[str], None]
    ) -> None:
        self.number = number
        self.limits = limits
        self.kill_worker = kill_worker
        """Ends the whole worker, when the session does not do as it is told."""
        self.loss = ""
        """Why it is lost; empty while it is not."""
        self._send = send
        self._state = _State.OPENING
        self._received: asyncio.Queue[frames.FromWorker | None] = asyncio.Queue()
        self._execution = 0
        self._call = 0
        self._output_bytes = 0

    @property
    def is_gone(self) -> bool:
        """Whether the worker has forgotten it."""
        return self._state is _State.GONE

    async def opened(self) -> frames.Opened:
        """Wait until it is ready; raises OpenFailedError or WorkerLostError."""
        frame = await self.next_frame()
        if isinstance(frame, frames.OpenFailed):
            raise OpenFailedError(frame)
        assert isinstance(frame, frames.Opened)
        return frame

    async def run(self, execution: int, code: str, *, report_variables: bool) -> None:
        """Start a cell; its frames follow, the last of them Ended."""
        self._execution, self._output_bytes = execution, 0
        self._state = _State.RUNNING
        await self._send(
            frames.Run(
                session=self.number,
                execution=execution,
                code=code,
                report_variables=report_variables,
            )
        )

    async def answer(self, call: int, outcomes: list[frames.Answer | frames.Refusal]) -> None:
        """Give the outcomes of the SubCalls that the cell waits for."""
        if self._state is _State.WAITING:
            self._state = _State.RUNNING
            await self._send(
                frames.SubCallAnswers(session=self.number, call=call, outcomes=outcomes)
            )

    async def interrupt(self) -> None:
        """Stop the running cell, if it still runs."""
        if self._state in (_State.RUNNING, _State.WAITING):
            await self._send(frames.Interrupt(session=self.number, execution=self._execution))

    async def close(self) -> None:
        """End it; frames that are still on their way are dropped."""
        if self._state not in (_State.CLOSING, _State.GONE):
            self._state = _State.CLOSING
            self.loss = self.loss or "the session was deleted"
            self._received.put_nowait(None)
            try:
                await self._send(frames.Close(session=self.number))
            except WorkerLostError:
                self._state = _State.GONE

    async def next_frame(self) -> frames.FromWorker:
        """Return the next frame; raises WorkerLostError where none will come."""
        frame = await self._received.get()
        if frame is None:
            self._received.put_nowait(None)
            raise WorkerLostError(self.loss or "the session was closed")
        return frame

    def lose(self, cause: str) -> None:
        """Note that nothing more will come."""
        self.loss = self.loss or cause
        self._state = _State.GONE
        self._received.put_nowait(None)

    def receive(self, frame: object) -> None:
        """Take a frame of the worker's; raises FrameError where it has no place here."""
        if isinstance(frame, frames.Lost):
            self.lose(frame.cause)
        elif self._state is _State.CLOSING:
            if isinstance(frame, frames.Closed):
                self._state = _State.GONE
        elif isinstance(frame, frames.Opened | frames.OpenFailed):
            self._require(frame, _State.OPENING)
            is_open = isinstance(frame, frames.Opened)
            self._state = _State.IDLE if is_open else _State.CLOSING
            self._received.put_nowait(frame)
        elif isinstance(frame, frames.Output | frames.SubCalls | frames.Ended):
            self._receive_of_execution(frame)
        else:
            raise frames.FrameError(f"{type(frame).__name__} while {self._state.value}")

    def _receive_of_execution(self, frame: frames.Output | frames.SubCalls | frames.Ended) -> None:
        if frame.execution != self._execution:
            raise frames.FrameError(f"{type(frame).__name__} of another execution")
        if isinstance(frame, frames.Ended):
            # An interrupt ends the wait for sub-calls as well.
            self._require(frame, _State.RUNNING, _State.WAITING)
            self._state = _State.IDLE
        else:
            self._require(frame, _State.RUNNING)
        if isinstance(frame, frames.SubCalls):
            if frame.call != self._call + 1:
                raise frames.FrameError("SubCalls out of order")
            self._call = frame.call
            self._state = _State.WAITING
        if isinstance(frame, frames.Output):
            # The worker cuts at the limit; more than that is not Python any more. U+FFFD may
            # stand for one byte and takes three.
            self._output_bytes += len(frame.text)
            if self._output_bytes > self.limits.output_bytes_max:
                raise frames.FrameError("more output than the limit")
        self._received.put_nowait(frame)

    def _require(self, frame: object, *states: _State) -> None:
        if self._state not in states:
            raise frames.FrameError(f"{type(frame).__name__} while {self._state.value}")

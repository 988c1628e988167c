"""A session in a worker, seen from the supervisor: what may be sent to it, and what may come.

Holds the state that decides whether a frame is allowed, and whether the session's layers hold
its memory whole. It does not know names, time to live or gateways; session.py does.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sandbox_service import frames
from sandbox_service.limits import Limits

_CLOSE_TIMEOUT_S = 60.0
"""For the worker to write down what a cell has changed, and to forget the session."""
_LATE_FRAMES_MAX = 10_000
"""More than a session that is being closed can have had under way."""


_OfExecution = frames.Output | frames.Grown | frames.Asked | frames.Ended
"""What comes while a cell runs."""


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
        self,
        number: int,
        limits: Limits,
        send: Send,
        kill_worker: Callable[[str], None],
        *,
        is_restored: bool = False,
    ) -> None:
        """Begin to open one; `is_restored` where its layers hold it already."""
        self.number = number
        self.limits = limits
        self.kill_worker = kill_worker
        """Ends the whole worker, when the session does not do as it is told."""
        self.loss = ""
        """Why the worker has it no more; empty while it has."""
        self.is_saved = is_restored
        """Whether its layers hold its memory as of its last execution that ended."""
        self.memory_bytes = 0
        """Linear memory, as of what the worker said last."""
        self._send = send
        self._state = _State.OPENING
        self._received: asyncio.Queue[frames.FromWorker | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._is_broken = False
        self._execution = 0
        self._ended = 0
        self._call = 0
        self._output_bytes = 0
        self._output_lines = 0
        self._late_frames = 0
        self._patience: asyncio.TimerHandle | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the worker has forgotten it."""
        return self._state is _State.GONE

    @property
    def can_go_on(self) -> bool:
        """Whether another worker can open it from its layers, once this one has it no more."""
        return self.is_saved and not self._is_broken

    async def opened(self) -> frames.Opened:
        """Wait until it is ready; raises OpenFailedError or WorkerLostError."""
        frame = await self.next_frame()
        if isinstance(frame, frames.OpenFailed):
            raise OpenFailedError(frame)
        assert isinstance(frame, frames.Opened)
        return frame

    async def run(
        self,
        execution: int,
        code: str,
        *,
        report_variables: bool,
        check: frames.CheckMode = "record",
        random_stream: int = 0,
        run: str = "",
    ) -> None:
        """Start a cell; its frames follow, the last of them Ended."""
        self._execution, self._output_bytes, self._output_lines = execution, 0, 0
        self._state = _State.RUNNING
        await self._send(
            frames.Run(
                session=self.number,
                execution=execution,
                code=code,
                report_variables=report_variables,
                check=check,
                random_stream=random_stream,
                run=run,
            )
        )

    async def answer(self, call: int, outcomes: list[frames.Outcome]) -> None:
        """Give the outcomes of what the cell asked and waits for."""
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
            self._state, self._is_broken = _State.CLOSING, True
            self.loss = self.loss or "the session was deleted"
            self._received.put_nowait(None)
            self._changed.set()
            loop, cause = asyncio.get_running_loop(), "a worker did not close a session in time"
            self._patience = loop.call_later(_CLOSE_TIMEOUT_S, self.kill_worker, cause)
            try:
                await self._send(frames.Close(session=self.number))
            except WorkerLostError:
                self._set_gone()

    async def relayer(self, fds: Sequence[int]) -> None:
        """Give an idle session other layers, the last of them to write to."""
        await self._send(frames.Relayer(session=self.number, layers=len(fds) - 1), fds)

    async def saved(self, timeout_s: float) -> None:
        """Wait until its layers hold its memory; only while no cell runs.

        Raises WorkerLostError, also where that takes too long: then the worker is ended.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_saved and not self.loss:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self.kill_worker("a worker did not save a session in time")
            await self.gone()
        if self.loss:
            raise WorkerLostError(self.loss)

    async def gone(self) -> None:
        """Wait until no more is heard of it, after a WorkerLostError."""
        while self._state not in (_State.CLOSING, _State.GONE):
            self._changed.clear()
            await self._changed.wait()

    async def next_frame(self) -> frames.FromWorker:
        """Return the next frame; raises WorkerLostError where none will come."""
        frame = await self._received.get()
        if frame is None:
            self._received.put_nowait(None)
            raise WorkerLostError(self.loss or "the session was closed")
        return frame

    def lose(self, cause: str, *, is_certain: bool = True) -> None:
        """Note that nothing more will come.

        Not certain is where frames may have been on their way: a session that ran may then have
        been changing its layers already.
        """
        self.loss = self.loss or cause
        if not is_certain and self._state in (_State.RUNNING, _State.WAITING):
            self.is_saved = False
        self._set_gone()
        self._received.put_nowait(None)

    def receive(self, frame: object) -> None:
        """Take a frame of the worker's; raises FrameError where it has no place here."""
        if isinstance(frame, frames.Lost):
            self._is_broken = self._is_broken or frame.is_broken
            self.lose(frame.cause)
        elif self._state is _State.CLOSING:
            self._late_frames += 1
            if isinstance(frame, frames.Closed):
                self._set_gone()
            elif self._late_frames > _LATE_FRAMES_MAX:
                raise frames.FrameError("a session that does not end")
        elif isinstance(frame, frames.Saved):
            self._receive_saved(frame)
        elif isinstance(frame, frames.Opened | frames.OpenFailed):
            self._require(frame, _State.OPENING)
            is_open = isinstance(frame, frames.Opened)
            self._state = _State.IDLE if is_open else _State.CLOSING
            if isinstance(frame, frames.Opened):
                self.memory_bytes = frame.memory_bytes
            self._received.put_nowait(frame)
        elif isinstance(frame, _OfExecution):
            self._receive_of_execution(frame)
        else:
            raise frames.FrameError(f"{type(frame).__name__} while {self._state.value}")

    def _set_gone(self) -> None:
        self._state = _State.GONE
        self._changed.set()
        if self._patience is not None:
            self._patience.cancel()

    def _receive_saved(self, frame: frames.Saved) -> None:
        # A cell may be under way already: it waits in the worker until this has been sent.
        self._require(frame, _State.IDLE, _State.RUNNING)
        if self.is_saved or frame.execution != self._ended:
            raise frames.FrameError("Saved of another execution")
        self.is_saved = True
        self._changed.set()

    def _receive_of_execution(self, frame: _OfExecution) -> None:
        if frame.execution != self._execution:
            raise frames.FrameError(f"{type(frame).__name__} of another execution")
        if not self.is_saved:
            raise frames.FrameError(f"{type(frame).__name__} before Saved")
        if isinstance(frame, frames.Ended):
            if frame.ending == "worker_lost":
                raise frames.FrameError("the end of a worker, told by itself")
            # An interrupt ends the wait for sub-calls as well.
            self._require(frame, _State.RUNNING, _State.WAITING)
            self._state = _State.IDLE
            self._ended, self.is_saved = frame.execution, False
            self.memory_bytes = frame.memory_bytes
        else:
            self._require(frame, _State.RUNNING)
        if isinstance(frame, frames.Grown):
            self._note_growth(frame.memory_bytes)
            return
        if isinstance(frame, frames.Asked):
            if frame.call != self._call + 1:
                raise frames.FrameError(f"{type(frame).__name__} out of order")
            self._call = frame.call
            self._state = _State.WAITING
        if isinstance(frame, frames.Output):
            self._note_output(frame.text)
        self._received.put_nowait(frame)

    def _note_output(self, text: str) -> None:
        # The worker cuts at the limits; more than that is not Python any more. U+FFFD may stand
        # for one byte and takes three.
        self._output_bytes += len(text)
        self._output_lines += text.count("\n")
        if self._output_bytes > self.limits.output_bytes_max:
            raise frames.FrameError("more output than the limit")
        if self._output_lines > self.limits.output_lines_max:
            raise frames.FrameError("more lines of output than the limit")

    def _note_growth(self, memory_bytes: int) -> None:
        least = self.memory_bytes + frames.GROWTH_BYTES
        if not least <= memory_bytes <= self.limits.memory_bytes_max:
            raise frames.FrameError(f"a growth to {memory_bytes} bytes")
        self.memory_bytes = memory_bytes

    def _require(self, frame: object, *states: _State) -> None:
        if self._state not in states:
            raise frames.FrameError(f"{type(frame).__name__} while {self._state.value}")

"""One execution on the supervisor's side: frames of the worker in, events for the caller out.

It runs as a task of its own until the worker has ended the cell, or died, whether or not the
caller is still listening, so that a session never stays busy without anything running in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeGuard

import msgspec

from common.errors import ServiceError
from sandbox_service import frames
from sandbox_service.cell_requests import CellEvent, CellRequests
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.limits import Limits
from sandbox_service.sub_calls import SubCallFinished, SubCallStarted
from sandbox_service.worker_session import WorkerLostError, WorkerSession

_log = logging.getLogger(__name__)
_GRACE_S = 15.0
"""Beyond a cell's own time, for the worker to say how it ended; then the worker is ended."""
_INTERRUPT_GRACE_S = 5.0
"""For the worker to end a cell that was interrupted; then the worker is ended."""
_JOINED_MAX = 50
"""Events that the caller is told of at once."""
_SMALL_CHARACTERS = 4096
"""Of output that may come along with other events."""
_EVENTS_AT_ONCE = 100
"""Of a batch's sub-calls; then everybody else has a turn."""
_LOST_MESSAGE = (
    "the worker process that ran the code died or hung ({}); the session goes on with the "
    "namespace as it was before this execution"
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The cell is over."""

    frame: frames.Ended
    """What the worker said, or what is to be said in its place where it died."""
    limit_reached: ServiceError | None
    """The limit of the run that stopped a sub-call, if one did."""


Event = frames.Output | CellEvent | Ended
Outcome = Ended | WorkerLostError
"""The last thing that is known of an execution."""


class ExecutionStream:
    """A cell that runs, or has run."""

    def __init__(
        self,
        place: Callable[[], Awaitable[WorkerSession]],
        limits: Limits,
        number: int,
        options: ExecutionOptions,
        requests: CellRequests,
        on_end: Callable[[ExecutionStream, Outcome], None] | None = None,
    ) -> None:
        """Take what finds the worker that is to run the cell, and what answers its requests.

        `on_end` is called once, before the caller hears of the end of a cell that was begun.
        """
        self.number = number
        """Position among the session's executions, from 1."""
        self.options = options
        """How the cell is run."""
        self.has_ended = False
        """Whether the cell is over, be it that its caller has not taken all of it."""
        self._place = place
        self._limits = limits
        self._session: WorkerSession | None = None
        self._own_time_s = 0.0
        self._requests = requests
        self._on_end = on_end
        self._events: asyncio.Queue[int | Event | Exception] = asyncio.Queue()
        self._limit_reached: ServiceError | None = None
        self._is_interrupted = False
        self._is_stopped_for_memory = False
        self._patience: asyncio.TimerHandle | None = None

    async def events(self) -> AsyncGenerator[list[int | Event], None]:
        """Yield the number once a worker has the cell, then what happens, Ended last: each by
        itself, but for small events, which come along with what is there after them.

        Raises WorkerLostError where the session is lost, or what kept it from a worker.
        """
        while True:
            event = await self._events.get()
            joined: list[int | Event] = []
            while _is_small(event) and len(joined) + 1 < _JOINED_MAX and not self._events.empty():
                joined.append(event)
                event = self._events.get_nowait()
            if isinstance(event, Exception):
                if joined:
                    yield joined
                raise event
            yield [*joined, event]
            if isinstance(event, Ended):
                return

    @property
    def memory_bytes(self) -> int:
        """Linear memory, as of what the worker said last; 0 while none has the cell."""
        return self._session.memory_bytes if self._session is not None else 0

    async def stop_for_memory(self) -> None:
        """Stop the cell, since the service has no memory left: it ends as out of memory."""
        self._is_stopped_for_memory = True
        await self.interrupt()

    async def interrupt(self) -> None:
        """Stop the cell, also one that is about to start; it ends with its own Ended."""
        self._is_interrupted = True
        if self._session is not None:
            await self._interrupt(self._session)

    def drop(self) -> None:
        """Forget what the caller has not taken yet: the session is gone."""
        while not self._events.empty():
            if isinstance(self._events.get_nowait(), Ended | Exception):
                self._events.put_nowait(WorkerLostError("the session was deleted"))
                return

    async def run(self) -> None:
        """Run the cell to its end."""
        try:
            session = await self._place()
        except Exception as error:  # whatever it is, it ends no other task of the service
            self._events.put_nowait(error)
            return
        try:
            self._finish(await self._run_in(session))
        except asyncio.CancelledError:
            await self._give_up(session)
            raise
        except Exception:
            # A fault of ours: it ends this session, and no other task of the service.
            _log.exception("an execution failed")
            await self._give_up(session)
        finally:
            self._session = None
            if self._patience is not None:
                self._patience.cancel()

    async def _run_in(self, session: WorkerSession) -> Outcome:
        options = self.options
        self._session = session
        self._events.put_nowait(self.number)
        try:
            await session.run(
                self.number,
                options.code,
                report_variables=options.report_variables,
                check=options.check,
                random_stream=options.random_stream,
                run=options.call_prefix.partition("/")[0],
            )
            if self._is_interrupted:
                await self._interrupt(session)
            ended = await self._followed(session)
            if self._is_stopped_for_memory and ended.ending == "interrupted":
                ended = _out_of_memory(ended, session.memory_bytes)
        except WorkerLostError as error:
            await session.gone()
            if not session.can_go_on:
                return error
            ended = self._without_worker(session)
        return Ended(frame=ended, limit_reached=self._limit_reached)

    async def _interrupt(self, session: WorkerSession) -> None:
        if self._patience is None:  # before the frame, which may be sent when the cell has ended
            loop, cause = asyncio.get_running_loop(), "a worker did not stop an interrupted cell"
            self._patience = loop.call_later(_INTERRUPT_GRACE_S, session.kill_worker, cause)
        with contextlib.suppress(WorkerLostError):  # then the cell ends by that
            await session.interrupt()

    def _without_worker(self, session: WorkerSession) -> frames.Ended:
        """Return the end of a cell whose worker died: it is undone."""
        return frames.Ended(
            session=0,
            execution=self.number,
            ending="worker_lost",
            state_kept=False,
            failure=frames.Failure(message=_LOST_MESSAGE.format(session.loss)),
            final=None,
            variables=[],
            output_bytes=0,
            output_bytes_dropped=0,
            own_time_s=self._own_time_s,
            wait_time_s=0.0,
            fuel_used=0,
            memory_bytes=session.memory_bytes,
        )

    @property
    def sub_calls(self) -> int:
        """Sub-calls that it has made so far."""
        return self._requests.sub_calls

    def _finish(self, outcome: Outcome) -> None:
        if self._on_end is not None:
            self._on_end(self, outcome)
        self.has_ended = True
        self._events.put_nowait(outcome)

    async def _give_up(self, session: WorkerSession) -> None:
        """End the session: nobody would answer its cell any more."""
        await session.close()
        self._finish(WorkerLostError("the execution was given up"))

    async def _followed(self, session: WorkerSession) -> frames.Ended:
        time_max_s = self._limits.execute_time_max_s + _GRACE_S
        while True:
            started = time.monotonic()
            try:
                frame = await self._next(session, time_max_s - self._own_time_s)
            finally:
                self._own_time_s += time.monotonic() - started
            if isinstance(frame, frames.Ended):
                return frame
            if isinstance(frame, frames.Output):
                self._events.put_nowait(frame)
            elif isinstance(frame, frames.Asked):
                ended = await self._answered(session, frame)
                if ended is not None:
                    return ended

    async def _next(self, session: WorkerSession, timeout_s: float) -> frames.FromWorker:
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):
                return await session.next_frame()
        except TimeoutError:
            session.kill_worker("a worker did not stop a cell in time")
            return await session.next_frame()

    async def _answered(self, session: WorkerSession, request: frames.Asked) -> frames.Ended | None:
        """Ask what the cell waits for; an Ended that comes meanwhile, after an interrupt, cuts
        that off."""
        following = asyncio.create_task(session.next_frame())
        asking = asyncio.create_task(self._ask(request))
        try:
            await asyncio.wait((following, asking), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                frame = following.result()
                assert isinstance(frame, frames.Ended)
                return frame
            outcomes = asking.result()
        finally:
            for task in (following, asking):
                task.cancel()
            await asyncio.wait((following, asking))
        await session.answer(request.call, outcomes)
        return None

    async def _ask(self, request: frames.Asked) -> list[frames.Outcome]:
        calls = self._requests.round_of(request)
        count = 0
        async for event in calls.events():
            self._events.put_nowait(event)
            count += 1
            if not count % _EVENTS_AT_ONCE:
                await asyncio.sleep(0)
        self._limit_reached = self._limit_reached or calls.limit_reached
        return calls.answers()


def _is_small(event: int | Event | Exception) -> TypeGuard[int | Event]:
    """Whether an event costs less than a message of its own."""
    if isinstance(event, frames.Output):
        return len(event.text) <= _SMALL_CHARACTERS
    return isinstance(event, int | SubCallStarted | SubCallFinished)


def _out_of_memory(interrupted: frames.Ended, memory_bytes: int) -> frames.Ended:
    """Return the end of a cell that was stopped for the memory that it took."""
    message = (
        "the service has no memory left, and this execution took the most of it: "
        f"{memory_bytes} bytes"
    )
    failure = frames.Failure(type="MemoryError", message=message)
    return msgspec.structs.replace(interrupted, ending="out_of_memory", failure=failure)

"""One execution on the supervisor's side: frames of the worker in, events for the caller out.

It runs as a task of its own until the worker has ended the cell, whether or not the caller is
still listening, so that a session never stays busy without anything running in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from common.errors import ServiceError
from sandbox_service import frames
from sandbox_service.sub_calls import SubCallEvent, SubCallMeter, SubCallRound, SubModels
from sandbox_service.worker_session import WorkerLostError, WorkerSession

_log = logging.getLogger(__name__)
_GRACE_S = 15.0
"""Beyond a cell's own time, for the worker to say how it ended; then the worker is ended."""


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How a cell is to be run."""

    code: str
    """Python source."""
    call_prefix: str = ""
    """Prefix of sub-calls' request ids; empty for none."""
    turn: int = 0
    """Turn of the run."""
    report_variables: bool = False
    """Whether to describe the variables at the end."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The cell is over."""

    frame: frames.Ended
    """What the worker said."""
    limit_reached: ServiceError | None
    """The limit of the run that stopped a sub-call, if one did."""


Event = frames.Output | SubCallEvent | Ended


class ExecutionStream:
    """A cell that runs, or has run."""

    def __init__(
        self,
        session: WorkerSession,
        number: int,
        options: ExecutionOptions,
        meter: SubCallMeter,
        sub_models: SubModels,
        *,
        run_token: str,
        sub_tier: str,
    ) -> None:
        self.number = number
        """Position among the session's executions, from 1."""
        self._session = session
        self._options = options
        self._meter = meter
        self._sub_models = sub_models
        self._run_token = run_token
        self._sub_tier = sub_tier
        self._events: asyncio.Queue[Event | WorkerLostError] = asyncio.Queue()
        self._sequence = 0
        self._limit_reached: ServiceError | None = None
        self._is_interrupted = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens, Ended last; raises WorkerLostError where that never comes."""
        while True:
            event = await self._events.get()
            if isinstance(event, WorkerLostError):
                raise event
            yield event
            if isinstance(event, Ended):
                return

    async def interrupt(self) -> None:
        """Stop the cell, also one that is about to start; it ends with its own Ended."""
        self._is_interrupted = True
        await self._session.interrupt()

    async def run(self) -> None:
        """Run the cell to its end."""
        options = self._options
        try:
            await self._session.run(
                self.number, options.code, report_variables=options.report_variables
            )
            if self._is_interrupted:
                await self._session.interrupt()
            ended = await self._followed()
        except WorkerLostError as error:
            self._events.put_nowait(error)
        except asyncio.CancelledError:
            await self._give_up()
            raise
        except Exception:
            # A fault of ours: it ends this session, and no other task of the service.
            _log.exception("an execution failed")
            await self._give_up()
        else:
            self._events.put_nowait(Ended(frame=ended, limit_reached=self._limit_reached))

    async def _give_up(self) -> None:
        """End the session: nobody would answer its cell any more."""
        await self._session.close()
        self._events.put_nowait(WorkerLostError("the execution was given up"))

    async def _followed(self) -> frames.Ended:
        time_left_s = self._session.limits.execute_time_max_s + _GRACE_S
        while True:
            started = time.monotonic()
            frame = await self._next(time_left_s)
            time_left_s -= time.monotonic() - started
            if isinstance(frame, frames.Ended):
                return frame
            if isinstance(frame, frames.Output):
                self._events.put_nowait(frame)
            elif isinstance(frame, frames.SubCalls):
                ended = await self._answered(frame)
                if ended is not None:
                    return ended

    async def _next(self, timeout_s: float) -> frames.FromWorker:
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):
                return await self._session.next_frame()
        except TimeoutError:
            self._session.kill_worker("a worker did not stop a cell in time")
            return await self._session.next_frame()

    async def _answered(self, request: frames.SubCalls) -> frames.Ended | None:
        """Make the sub-calls; an Ended that comes meanwhile, after an interrupt, cancels them."""
        following = asyncio.create_task(self._session.next_frame())
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
        await self._session.answer(request.call, outcomes)
        return None

    async def _ask(self, request: frames.SubCalls) -> list[frames.Answer | frames.Refusal]:
        calls = SubCallRound(
            question=request.question,
            meter=self._meter,
            sub_models=self._sub_models,
            run_token=self._run_token,
            default_tier=self._sub_tier,
            call_prefix=self._options.call_prefix,
            turn=self._options.turn,
            sequence=self._sequence,
        )
        self._sequence += len(request.question.prompts)
        async for event in calls.events():
            self._events.put_nowait(event)
        self._limit_reached = self._limit_reached or calls.limit_reached
        return calls.answers()

"""A session as clients know it: name, limits, time to live, one execution at a time."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from sandbox_service.errors import SessionBusyError, SessionLostError
from sandbox_service.execution_stream import Ended, Event, ExecutionOptions, ExecutionStream
from sandbox_service.limits import Limits
from sandbox_service.sub_calls import SubCallMeter, SubModels
from sandbox_service.worker_session import WorkerLostError, WorkerSession


class SessionState(enum.Enum):
    """Where a session is in its life."""

    IDLE = "idle"
    BUSY = "busy"
    LOST = "lost"


class Session:
    """One guest and what belongs to it on this side."""

    def __init__(
        self,
        name: str,
        worker: WorkerSession,
        *,
        number: int,
        memory_bytes: int,
        run_token: str,
        sub_tier: str,
        idle_ttl_s: float,
        labels: Mapping[str, str],
    ) -> None:
        self.name = name
        """`sessions/{session}`."""
        self.number = number
        """Position among the sessions of this process, from 1."""
        self.labels = dict(labels)
        """The caller's own."""
        self.created_at = time.time()
        """Unix time, seconds."""
        self.memory_bytes = memory_bytes
        """Linear memory as of the last execution."""
        self.executions = 0
        """Executions that ended."""
        self.meter = SubCallMeter(worker.limits.sub_calls_max)
        """Counts the sub-calls."""
        self._worker = worker
        self._run_token = run_token
        self._sub_tier = sub_tier
        self._idle_ttl_s = idle_ttl_s
        self._used_at = time.time()
        self._started = 0
        self._current: ExecutionStream | None = None

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._worker.limits

    @property
    def state(self) -> SessionState:
        """Where it is in its life."""
        if self._worker.loss:
            return SessionState.LOST
        return SessionState.BUSY if self._current is not None else SessionState.IDLE

    @property
    def loss(self) -> str:
        """Why it is lost; empty while it is not."""
        return self._worker.loss

    @property
    def expires_at(self) -> float:
        """When it is deleted unless it is used again; Unix time, seconds."""
        return (time.time() if self._current is not None else self._used_at) + self._idle_ttl_s

    def touch(self) -> None:
        """Note that it was used."""
        self._used_at = time.time()

    def require_alive(self) -> None:
        """Raise SessionLostError where its worker died."""
        if self._worker.loss:
            raise SessionLostError(self.name, self._worker.loss)

    async def execute(
        self,
        options: ExecutionOptions,
        sub_models: SubModels,
        tasks: asyncio.TaskGroup,
        run_token: str = "",
    ) -> AsyncGenerator[int | Event, None]:
        """Run a cell: yield its number, then its events, Ended last.

        The cell runs in `tasks`; a caller that goes away interrupts it, and the session is busy
        until it has ended. Raises SessionBusyError or SessionLostError.
        """
        self.require_alive()
        if self._current is not None:
            raise SessionBusyError(self.name)
        self._run_token = run_token or self._run_token
        self._started += 1
        stream = ExecutionStream(
            self._worker,
            self._started,
            options,
            self.meter,
            sub_models,
            run_token=self._run_token,
            sub_tier=self._sub_tier,
        )
        self._current = stream
        running = tasks.create_task(stream.run())
        running.add_done_callback(lambda _: self._has_ended(stream))
        is_over = False
        try:
            yield stream.number
            async with aclosing(stream.events()) as events:
                async for event in events:
                    is_over = isinstance(event, Ended)
                    if isinstance(event, Ended):
                        self.memory_bytes = event.frame.memory_bytes
                        self._has_ended(stream)
                    yield event
        except WorkerLostError as error:
            is_over = True
            raise SessionLostError(self.name, self._worker.loss or str(error)) from error
        finally:
            if not is_over:
                await self.interrupt()

    async def interrupt(self) -> bool:
        """Stop the running execution; returns whether there was one."""
        current = self._current
        if current is None:
            return False
        try:
            await current.interrupt()
        except WorkerLostError as error:
            raise SessionLostError(self.name, str(error)) from error
        return True

    async def close(self) -> None:
        """End the session in its worker."""
        await self._worker.close()

    def _has_ended(self, stream: ExecutionStream) -> None:
        """Make room for the next execution, once."""
        if self._current is stream:
            self._current = None
            self.executions += 1
            self.touch()

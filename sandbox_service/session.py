"""A session as clients know it: name, limits, time to live, one execution at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from sandbox_service import frames
from sandbox_service.audit import AuditTrail, Executed
from sandbox_service.cell_requests import Carriers, CellRequests
from sandbox_service.errors import SessionBusyError, SessionLostError
from sandbox_service.execution_options import ExecutionOptions
from sandbox_service.execution_stream import Ended, Event, ExecutionStream, Outcome
from sandbox_service.limits import Limits
from sandbox_service.residence import Residence
from sandbox_service.run_pass import RunPass
from sandbox_service.session_memory import SessionMemory
from sandbox_service.session_options import SessionOptions, SessionUse
from sandbox_service.sub_calls import SubCallMeter
from sandbox_service.worker_session import WorkerLostError


class SessionState(enum.Enum):
    """Where a session is in its life."""

    IDLE = "idle"
    BUSY = "busy"
    EVICTED = "evicted"
    LOST = "lost"


class Session:
    """One guest and what belongs to it on this side."""

    def __init__(
        self,
        name: str,
        number: int,
        residence: Residence,
        use: SessionUse,
        checkpoint_key: str = "",
    ) -> None:
        """Take over where a session is, and what it has done before."""
        options = residence.options
        self.name = name
        """`sessions/{session}`."""
        self.number = number
        """Position among the sessions of this process, from 1."""
        self.labels = dict(options.labels)
        """The caller's own."""
        self.created_at = time.time()
        """Unix time, seconds."""
        self.used_at = self.created_at
        """When it was used last; Unix time, seconds."""
        self._memory_bytes = residence.memory_bytes
        self.checkpoint_key = checkpoint_key
        """Key of its last checkpoint, or of the one that it came from; else empty."""
        self.meter = SubCallMeter(
            options.limits.sub_calls_max,
            made=use.sub_calls,
            batches=use.sub_call_batches,
            sub_calls_of_children=use.sub_calls_of_children,
        )
        """Counts the sub-calls."""
        self._residence = residence
        self._use = use
        self._run_pass = RunPass(options.run_token)
        self._current: ExecutionStream | None = None

    @property
    def memory_bytes(self) -> int:
        """Linear memory as of the last execution, or of what is known of the running one."""
        running = self._current.memory_bytes if self._current is not None else 0
        return max(self._memory_bytes, running)

    @property
    def options(self) -> SessionOptions:
        """What it was made as, its contexts as they were mounted."""
        return self._residence.options

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._residence.options.limits

    @property
    def profile(self) -> str:
        """What was imported beforehand."""
        return self._residence.options.profile

    @property
    def memory(self) -> SessionMemory:
        """Its layers."""
        return self._residence.memory

    @property
    def is_saved(self) -> bool:
        """Whether its layers hold its memory, so that the death of its worker does no harm."""
        return self._residence.is_saved

    @property
    def executions(self) -> int:
        """Executions that ended."""
        return self._use.executions

    @property
    def use(self) -> SessionUse:
        """What it has done so far."""
        meter = self.meter
        return dataclasses.replace(
            self._use,
            sub_calls=meter.made,
            sub_call_batches=meter.batches,
            sub_calls_of_children=meter.sub_calls_of_children,
        )

    @property
    def state(self) -> SessionState:
        """Where it is in its life."""
        if self._residence.loss:
            return SessionState.LOST
        if self._current is not None:
            return SessionState.BUSY
        return SessionState.IDLE if self._residence.is_in_worker else SessionState.EVICTED

    @property
    def is_running(self) -> bool:
        """Whether a cell runs in it; it is busy for longer where its caller takes its time."""
        return self._current is not None and not self._current.has_ended

    @property
    def loss(self) -> str:
        """Why it is lost; empty while it is not."""
        return self._residence.loss

    @property
    def expires_at(self) -> float:
        """When it is deleted unless it is used again; Unix time, seconds."""
        used_at = time.time() if self._current is not None else self.used_at
        return used_at + self.options.idle_ttl_s

    def touch(self) -> None:
        """Note that it was used."""
        self.used_at = time.time()

    async def execute(
        self,
        options: ExecutionOptions,
        carriers: Carriers,
        tasks: asyncio.TaskGroup,
        audit: AuditTrail,
        run_token: str = "",
    ) -> AsyncGenerator[list[int | Event], None]:
        """Run a cell: yield its number, then its events, Ended last; several at once where they
        are many.

        The cell runs in `tasks`; a caller that goes away interrupts it. The session is busy until
        it has ended, and its caller has taken all of it or gone away. Raises SessionBusyError,
        SessionLostError, or CapacityError or ObjectStoreAwayError where the session is in no worker
        and none can take it, or what it is made of cannot be read just then.
        """
        if self._current is not None:
            raise SessionBusyError(self.name)
        self._run_pass.token = run_token or self._run_pass.token
        self.meter.sub_calls_max = (
            self.limits.sub_calls_max
            if options.sub_calls_max is None
            else self.meter.made + self.meter.sub_calls_of_children + options.sub_calls_max
        )
        stream = ExecutionStream(
            lambda: self._residence.arrive(self._use),
            self.limits,
            self.executions + 1,
            options,
            CellRequests(options, carriers, self.meter, self._run_pass, self.options.sub_tier),
            on_end=lambda stream, outcome: self._note_end(stream, outcome, audit),
        )
        self._current = stream
        running = tasks.create_task(stream.run())
        is_over = False
        try:
            async with aclosing(stream.events()) as told:
                async for events in told:
                    is_over = isinstance(events[-1], Ended)
                    if is_over:
                        self._is_free_of(stream)
                    yield events
        except WorkerLostError as error:
            is_over = True
            self._is_free_of(stream)
            raise self._lost(error) from error
        finally:
            # Not before: what its caller leaves untaken is memory of the service.
            running.add_done_callback(lambda _: self._is_free_of(stream))
            if not is_over:
                await self.interrupt()

    def refresh_run_token(self, run_token: str) -> None:
        """Bring another run token from here on, also with what the running execution asks."""
        self._run_pass.token = run_token

    async def interrupt(self) -> bool:
        """Stop the running execution; returns whether there was one."""
        current = self._current
        if current is None or current.has_ended:
            return False
        await current.interrupt()
        return True

    async def stop_for_memory(self) -> None:
        """Stop the running execution, as out of memory: the service has none left."""
        if self._current is not None:
            await self._current.stop_for_memory()

    async def copied_memory(self) -> SessionMemory:
        """Return its memory as of now, for the caller to close.

        Raises SessionBusyError or SessionLostError.
        """
        async with self._residence.moving:
            if self._current is not None:
                raise SessionBusyError(self.name)
            try:
                return await self._residence.copied_memory()
            except WorkerLostError as error:
                raise self._lost(error) from error

    async def depart(self, executions: int) -> None:
        """Leave worker and memory, all being stored, unless it has run more than so many cells."""
        async with self._residence.moving:
            if self._current is None and self.executions == executions:
                await self._residence.depart()

    async def close(self) -> None:
        """End the session wherever it is; where it is deleted, the caller of its cell gets no more
        of what that wrote."""
        if self._current is not None and not self.loss:
            self._current.drop()
        await self._residence.close()

    def _lost(self, error: WorkerLostError) -> SessionLostError:
        cause = self._residence.loss or str(error)
        return SessionLostError(self.name, cause, self.checkpoint_key)

    def _note_end(self, stream: ExecutionStream, outcome: Outcome, audit: AuditTrail) -> None:
        audit.executed(self._executed(stream, outcome))
        self._use = dataclasses.replace(self._use, executions=self._use.executions + 1)
        self.touch()
        if isinstance(outcome, Ended):
            self._note_use(outcome.frame)

    def _note_use(self, ended: frames.Ended) -> None:
        limits = self.limits
        self._memory_bytes = ended.memory_bytes
        fixed = self._use.determinism
        if fixed is not None and ended.ending != "worker_lost":
            fixed = msgspec.structs.replace(fixed, clock_ns=ended.clock_ns)
        self._use = dataclasses.replace(
            self._use,
            # A worker may say anything; more than all of it cannot have been used.
            fuel_used=min(self._use.fuel_used + ended.fuel_used, limits.session_fuel_max),
            time_used_s=min(self._use.time_used_s + ended.own_time_s, limits.session_time_max_s),
            determinism=fixed,
        )

    def _executed(self, stream: ExecutionStream, outcome: Outcome) -> Executed:
        """Return what the audit trail is to know of an execution."""
        frame = outcome.frame if isinstance(outcome, Ended) else None
        return Executed(
            session=self.name,
            labels=self.labels,
            run_token=self._run_pass.token,
            number=stream.number,
            code=stream.options.code,
            ending=frame.ending if frame is not None else "session_lost",
            frame=frame,
            sub_calls=stream.sub_calls,
        )

    def _is_free_of(self, stream: ExecutionStream) -> None:
        """Make room for the next execution, once."""
        if self._current is stream:
            self._current = None

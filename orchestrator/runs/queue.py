"""The runs that this process drives: taken up where a place is free, carried out by the durable
engine, and stopped, left or ended from here.

Which runs wait, and what bounds there are over all processes, is in the database (turnstile).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from fathom.orchestrator.v1.run_pb2 import Run

from common.database import DatabaseAwayError
from orchestrator.durable.engine import DurableEngine, RunLeftError
from orchestrator.durable.turnstile import Taken, Turnstile
from orchestrator.errors import QueueFullError, RunCancelledError, RunOverdueError
from orchestrator.operations.audit_log import Deed
from orchestrator.runs.driving import Driving
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import TERMINAL_STATES, RunRecord
from orchestrator.runs.log.steps import Steps, StepsLostError
from orchestrator.runs.stop_wish import Reason, StopWish

Drive = Callable[[str, RunRecord, StopWish, Steps], Awaitable[None]]
_PATIENCE_S = 10.0
"""How long a run that was told to stop may take for it."""
_OVERDUE_S = 60.0
"""How far a run may outlive its wall time, which its driver is to keep."""
_PAUSE_S = 1.0
"""How long a run rests whose driving has failed, and how often a database that is away is tried."""
_log = logging.getLogger(__name__)


class RunQueue:
    """The runs of this process; an async context manager. Leaving it lets go of them: they go on
    in another process, or when this service starts again."""

    def __init__(
        self,
        turnstile: Turnstile,
        engine: DurableEngine,
        log: EventLog,
        drive: Drive,
        *,
        running_max: int,
        waiting_max: int,
        waiting_max_per_tenant: int,
    ) -> None:
        self._turnstile = turnstile
        self._engine = engine
        self._log = log
        self._drive = drive
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._waiting_max_per_tenant = waiting_max_per_tenant
        self._coming: collections.Counter[str] = collections.Counter()
        self._running: dict[str, Driving] = {}
        self._woken = asyncio.Event()
        self._is_closed = False
        self._tasks = asyncio.TaskGroup()
        log.on_lost = self.leave

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.create_task(self._take())
        self.wake()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closed = True
        self.wake()
        self.leave_all()
        late = asyncio.get_running_loop().call_later(_PATIENCE_S, self._abandon_all)
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            late.cancel()

    @contextlib.asynccontextmanager
    async def room(self, tenant: str) -> AsyncIterator[None]:
        """Keep room for a run of a tenant to wait while it is stored. Raises QueueFullError where
        there is none, and DatabaseAwayError."""
        ahead, ahead_of_all = self._coming[tenant], self._coming.total()
        self._coming[tenant] += 1
        try:
            own, of_all = await self._turnstile.waiting_counts(tenant)
            if own + ahead >= self._waiting_max_per_tenant:
                raise QueueFullError(self._waiting_max_per_tenant, scope="tenant")
            if of_all + ahead_of_all >= self._waiting_max:
                raise QueueFullError(self._waiting_max, scope="service")
            yield
        finally:
            self._coming[tenant] -= 1
            self._coming += collections.Counter()  # forgets those that have none coming

    def wake(self) -> None:
        """Look for runs to take up: one was stored, or something has changed elsewhere."""
        self._woken.set()

    async def cancel(self, run_id: str, deed: Deed | None = None) -> None:
        """Ask a run and all below it to stop, wherever they are driven or wait; nothing where it
        has ended. Returns once the wish is stored, and with it what the audit log is to have of
        it. Raises DatabaseAwayError."""
        self._stop_all(await self._turnstile.wish_stop(run_id, deed=deed))
        self.stop(run_id)

    async def cancel_below(self, run_id: str) -> None:
        """Ask all below a run to stop. Raises DatabaseAwayError."""
        self._stop_all(await self._turnstile.wish_stop(run_id, only_below=True))

    def _stop_all(self, run_ids: list[str]) -> None:
        for run_id in run_ids:
            self.stop(run_id)
        self.wake()

    def stop(self, run_id: str, reason: Reason = RunCancelledError) -> None:
        """Stop a run that is driven here; else do nothing."""
        driving = self._running.get(run_id)
        if driving is not None:
            driving.stop_for(reason)

    def leave(self, run_id: str) -> None:
        """Let go of a run that is driven here, and not here alone any more."""
        driving = self._running.get(run_id)
        if driving is not None:
            driving.leave()

    def leave_all(self) -> None:
        """Let go of all runs: this process is to end, or has lost them."""
        for driving in self._running.values():
            driving.leave()

    def end_overdue(self) -> None:
        """Stop runs that have outlived their wall time by far, and end those that were told to
        stop and have not."""
        for driving in self._running.values():
            if driving.overdue_s() > _OVERDUE_S:
                driving.stop_for(RunOverdueError)
            if driving.told_for_s() > _PATIENCE_S:
                driving.abandon()

    async def _take(self) -> None:
        """Take up runs whenever woken."""
        while not self._is_closed:
            await self._woken.wait()
            self._woken.clear()
            if self._is_closed:
                return
            busy = sum(driving.taken.places for driving in self._running.values())
            free = max(0, self._running_max - busy)
            try:
                taken = await self._turnstile.take(free, only_stopped=not self._running_max)
            except DatabaseAwayError:
                await asyncio.sleep(_PAUSE_S)
                self.wake()
                continue
            for each in taken:
                self._begin(each)

    def _begin(self, taken: Taken) -> None:
        driving = Driving(taken)
        # A run that was lost with the lease can come back before its former driving has ended.
        former = self._running.get(taken.record.run_id)
        self.leave(taken.record.run_id)
        self._running[taken.record.run_id] = driving
        if taken.is_stop_wished:
            self.stop(taken.record.run_id)
        if self._is_closed:
            self.leave(taken.record.run_id)
        self._tasks.create_task(self._carry_out(driving, former))

    async def _carry_out(self, driving: Driving, former: Driving | None) -> None:
        taken, record = driving.taken, driving.taken.record
        if former is not None:
            await asyncio.wait({former.over}, timeout=_PATIENCE_S)
            former.abandon()
            await former.over
        self._log.open(record, epoch=taken.epoch)
        work = functools.partial(self._work, driving)
        carried = asyncio.ensure_future(
            self._engine.carry_out(record.run_id, work, is_first=taken.epoch == 1)
        )
        try:
            await asyncio.wait({carried, driving.abandoned}, return_when=asyncio.FIRST_COMPLETED)
            patience_s = _PAUSE_S if driving.is_begun else 0.0
            async with asyncio.timeout(patience_s if driving.abandoned.done() else None):
                await carried
        except (RunLeftError, StepsLostError, TimeoutError):
            pass
        except DatabaseAwayError:
            await asyncio.sleep(_PAUSE_S)
        except Exception:
            _log.exception("a run could not be driven", extra={"run": record.head.name})
            await self._rest(driving)
        finally:
            carried.cancel()  # where this was cut off: what it ends with is heard all the same
            await asyncio.gather(carried, return_exceptions=True)
            self._log.close_run(record.run_id)
            await self._release(driving)
            if self._running.get(record.run_id) is driving:
                del self._running[record.run_id]
            driving.over.set_result(None)
            self.wake()

    async def _work(self, driving: Driving, steps: Steps) -> None:
        """Drive a run until its end is stored; raise RunLeftError where it goes on elsewhere."""
        taken, stop = driving.taken, driving.stop
        if stop.is_left:
            raise RunLeftError
        driving.is_begun = True
        work = asyncio.ensure_future(self._drive(taken.tenant, taken.record, stop, steps))
        await asyncio.wait({work, driving.abandoned}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        else:
            work.cancel()
            _log.error("a run did not stop when told", extra={"run": taken.record.head.name})
            if not stop.is_left:
                self._end(driving)
        if stop.is_left:
            raise RunLeftError
        await self._log.stored(taken.record.run_id)

    async def _rest(self, driving: Driving) -> None:
        """Have a run rest whose driving has failed. Its time goes by, also where it could not even
        be begun, and it is ended when that is over: it would be tried again for ever."""
        record = driving.taken.record
        if not record.progress.HasField("start_time"):
            record.progress.state = Run.STATE_RUNNING
            record.progress.start_time.GetCurrentTime()
            self._log.append(record, record.state_event())
        elif time.time() > record.ends_s + _OVERDUE_S:
            driving.stop.wish(RunOverdueError)
            self._end(driving)
        await asyncio.sleep(_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._log.stored(record.run_id)

    def _end(self, driving: Driving) -> None:
        """Store the end of a run whose driver does not."""
        record = driving.taken.record
        run = record.progress
        if run.state in TERMINAL_STATES:
            return
        error = driving.stop.error(record.head.name)
        is_cancelled = isinstance(error, RunCancelledError)
        run.state = Run.STATE_CANCELLED if is_cancelled else Run.STATE_FAILED
        run.error.CopyFrom(error.to_status())
        run.sub_calls_live = 0
        run.usage_incomplete = run.HasField("start_time")  # nobody has settled it
        run.end_time.GetCurrentTime()
        self._log.append(record, record.state_event())

    async def _release(self, driving: Driving) -> None:
        """Let a run that has not ended wait again; where that cannot be stored, the end of the
        lease does it."""
        record = driving.taken.record
        while record.progress.state not in TERMINAL_STATES or driving.stop.is_left:
            try:
                await self._turnstile.release(record.run_id, driving.taken.epoch)
            except DatabaseAwayError:
                if not self._is_closed:
                    await asyncio.sleep(_PAUSE_S)
                    continue
            return

    def _abandon_all(self) -> None:
        for driving in self._running.values():
            driving.abandon()

"""What has to be done again and again: the lease kept, runs of dead processes freed, wishes to stop
met, overdue runs ended, what is old forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator

from common.background import end_tasks
from common.database import Database, DatabaseAwayError
from orchestrator.durable.engine import DurableEngine
from orchestrator.durable.executors import Executor
from orchestrator.durable.turnstile import STOP_CHANNEL, Turnstile
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.store import EVENTS_CHANNEL, QUEUE_CHANNEL, RunStore
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.queue import RunQueue

_TICK_S = 1.0
_TICKS_A_LEASE = 4
_FORGET_S = 600.0
"""How often what is old is looked for."""
_FORGET_LEFT_S = 5.0
"""How often runs are looked for that have ended without the engine's knowledge."""
_STEPS_KEPT_S = 3600.0
"""How long the steps of a run that has ended are kept: for people, the event log has them."""
_BEGUN_BEFORE_S = 86_400.0
"""How long after a run's longest time its steps are kept at most, whatever became of it."""
_LISTEN_PAUSE_S = 0.5
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upkeep:
    """Keeps one process's share in order; `running` while it lasts."""

    database: Database
    """Where everything is."""
    executor: Executor
    """This process."""
    turnstile: Turnstile
    """What waits."""
    queue: RunQueue
    """What is driven here."""
    log: EventLog
    """Who watches here."""
    runs: RunStore
    """Remembered request ids, and which runs have ended."""
    engine: DurableEngine
    """Remembered steps."""
    meters: RunMeters
    """Where the queue's depth is told."""
    lease_s: float
    """How long this process counts as alive without a sign of it."""
    run_time_max_s: float
    """Seconds that a run can last."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep things in order while the block lasts."""
        async with asyncio.TaskGroup() as tasks:
            works = (self._tick(), self._forget(), self._forget_left())
            begun = [tasks.create_task(work) for work in works]
            if self.database.is_shared:
                begun.append(tasks.create_task(self._listen()))
            try:
                yield
            finally:
                await end_tasks(*begun)

    async def _tick(self) -> None:
        reaps_from_s = 0.0
        while True:
            try:
                await self._keep(may_reap=time.monotonic() >= reaps_from_s)
            except DatabaseAwayError:
                # While it was away nobody could renew a lease: others get the time to.
                reaps_from_s = time.monotonic() + self.lease_s
                _log.warning("the database is away; leases and queue wait")
            await asyncio.sleep(min(_TICK_S, self.lease_s / _TICKS_A_LEASE))

    async def _keep(self, *, may_reap: bool) -> None:
        self.queue.end_overdue()
        if self.database.is_shared:
            if not await self.executor.renew():
                _log.warning("the lease had ended: other processes have this one's runs")
                self.queue.leave_all()
            if may_reap and (freed := await self.executor.reap()):
                _log.warning("runs of a process that is gone are free", extra={"runs": len(freed)})
        for run_id in await self.turnstile.stopped():
            self.queue.stop(run_id)
        await self.turnstile.let_overdue_through()
        _, waiting = await self.turnstile.waiting_counts("")
        self.meters.waiting(waiting)
        self.queue.wake()

    async def _forget(self) -> None:
        while True:
            try:
                await self.runs.forget_requests()
                while await self.engine.forget(
                    ended_before_s=_STEPS_KEPT_S,
                    begun_before_s=self.run_time_max_s + _BEGUN_BEFORE_S,
                    alive=self.executor.alive,
                ):
                    pass
            except DatabaseAwayError:
                _log.warning("the database is away; what is old stays")
            await asyncio.sleep(_FORGET_S)

    async def _forget_left(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_LEFT_S)
            with contextlib.suppress(DatabaseAwayError):
                if left := await self.engine.forget_left(self.runs.ended_among):
                    _log.info("runs that ended unnoted were forgotten", extra={"runs": left})

    async def _listen(self) -> None:
        """Hear what other processes tell. What is missed is found a tick later."""
        while True:
            with contextlib.suppress(DatabaseAwayError):
                channels = (EVENTS_CHANNEL, QUEUE_CHANNEL, STOP_CHANNEL)
                async with self.database.notified(*channels) as told:
                    self.log.wake_all()
                    self.queue.wake()
                    async for channel, payload in told:
                        self._hear(channel, payload)
            await asyncio.sleep(_LISTEN_PAUSE_S)

    def _hear(self, channel: str, payload: str) -> None:
        if channel == EVENTS_CHANNEL:
            for run_id in payload.split(","):
                self.log.wake(run_id)
        elif channel == STOP_CHANNEL:
            self.queue.stop(payload)
        else:
            self.queue.wake()

"""What drives runs, put together as the service does it, with a driver of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.database import Database
from orchestrator.durable.dbos_engine import DbosEngine
from orchestrator.durable.executors import Executor
from orchestrator.durable.turnstile import Turnstile
from orchestrator.durable.upkeep import Upkeep
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.queue import Drive, RunQueue
from orchestrator.tables import MIGRATIONS
from tests.support.plain_engine import PlainEngine


@dataclasses.dataclass(frozen=True)
class Durable:
    """One process's share, open."""

    database: Database
    """Where everything is."""
    runs: RunStore
    """Runs."""
    log: EventLog
    """Their events."""
    queue: RunQueue
    """What is driven here."""
    turnstile: Turnstile
    """What waits."""
    executor: Executor
    """This process."""

    async def create(
        self, tenant: str = "t", *, priority: int = 0, parent: str = "", time_s: float = 60.0
    ) -> RunRecord:
        """Store a run, which then waits."""
        record = waiting_run(priority=priority, time_s=time_s)
        record.head.parent = parent
        await self.runs.create(tenant, record, record.state_event(), None)
        self.queue.wake()
        return record

    async def run(self, record: RunRecord, tenant: str = "t") -> Run:
        """Return a run as it is stored."""
        return (await self.runs.get(tenant, record.run_id)).whole()

    async def watch(self, record: RunRecord, within_s: float = 60.0) -> list[int]:
        """Return the sequences of a run's events, to its end."""
        async with asyncio.timeout(within_s):
            return [event.sequence async for event in self.log.follow(record.run_id, after=0)]


def waiting_run(question: str = "?", *, priority: int = 0, time_s: float = 60.0) -> RunRecord:
    """Return a run that can be stored, to wait for its driver."""
    limits = Limits()
    limits.time_max.FromNanoseconds(int(time_s * 1e9))
    return RunRecord.queued(RunSpec(question=question, priority=priority, limits=limits))


@contextlib.asynccontextmanager
async def durable(
    url: str,
    driving: Callable[[EventLog], Drive],
    *,
    with_dbos: bool = False,
    running_max: int = 8,
    per_tenant_max: int = 8,
    waiting_max: int = 1_000,
    waiting_max_per_tenant: int = 1_000,
    lease_s: float = 15.0,
    with_upkeep: bool = True,
) -> AsyncIterator[Durable]:
    """Open what drives runs over a database, and let go of the runs at the end. `driving` returns
    the driver that writes to a log."""
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(url, MIGRATIONS, patience_s=1.0)
        stack.push_async_callback(database.close)
        runs = RunStore(database)
        executor, log = Executor(database, lease_s=lease_s), EventLog(runs)
        await executor.open()
        stack.push_async_callback(executor.close)
        await stack.enter_async_context(_writing(log))
        engine: PlainEngine | DbosEngine = PlainEngine()
        if with_dbos:
            engine = DbosEngine(url, executor_id=executor.executor_id)
            await stack.enter_async_context(engine)
        turnstile = Turnstile(database, executor.executor_id, per_tenant_max=per_tenant_max)
        queue = RunQueue(
            *(turnstile, engine, log, driving(log)),
            running_max=running_max,
            waiting_max=waiting_max,
            waiting_max_per_tenant=waiting_max_per_tenant,
        )
        upkeep = Upkeep(
            database=database,
            executor=executor,
            turnstile=turnstile,
            queue=queue,
            log=log,
            runs=runs,
            engine=engine,
            meters=RunMeters(),
            lease_s=lease_s,
            run_time_max_s=3600.0,
        )
        if with_upkeep:
            await stack.enter_async_context(upkeep.running())
        await stack.enter_async_context(queue)
        yield Durable(database, runs, log, queue, turnstile, executor)


@contextlib.asynccontextmanager
async def _writing(log: EventLog) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(log.write())
        try:
            yield
        finally:
            log.close()
            await writer

"""What drives runs, put together: what is opened, in which order, and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from common.config import Secret
from common.database import Database
from orchestrator.durable.dbos_engine import DbosEngine
from orchestrator.durable.executors import Executor
from orchestrator.durable.turnstile import Turnstile
from orchestrator.durable.upkeep import Upkeep
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.queue import Drive, RunQueue


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """How many runs are driven, and who counts as alive."""

    database_url: Secret
    """The database, in which or beside which the engine keeps its steps."""
    running_max: int
    """Runs that this process drives at a time."""
    per_tenant_max: int
    """Runs of a tenant that all processes drive at a time."""
    waiting_max: int
    """Runs that may wait."""
    waiting_max_per_tenant: int
    """Runs of a tenant that may wait."""
    lease_s: float
    """How long a process counts as alive without a sign of it."""
    run_time_max_s: float
    """Seconds that a run can last."""


@contextlib.asynccontextmanager
async def open_queue(
    database: Database, log: EventLog, drive: Drive, meters: RunMeters, settings: QueueSettings
) -> AsyncIterator[RunQueue]:
    """Open what drives runs, and yield the queue, which drives none before it is entered.

    It is to be left before this block ends: runs are let go of, then what they have told is stored,
    and only then the lease ends and others take them up.
    """
    async with contextlib.AsyncExitStack() as stack:
        executor = Executor(database, lease_s=settings.lease_s)
        await executor.open()
        stack.push_async_callback(executor.close)
        await stack.enter_async_context(_writing(log))
        engine = DbosEngine(settings.database_url.reveal(), executor_id=executor.executor_id)
        await stack.enter_async_context(engine)
        turnstile = Turnstile(
            database, executor.executor_id, per_tenant_max=settings.per_tenant_max
        )
        queue = RunQueue(
            turnstile,
            engine,
            log,
            drive,
            running_max=settings.running_max,
            waiting_max=settings.waiting_max,
            waiting_max_per_tenant=settings.waiting_max_per_tenant,
        )
        upkeep = Upkeep(
            database=database,
            executor=executor,
            turnstile=turnstile,
            queue=queue,
            log=log,
            runs=RunStore(database),
            engine=engine,
            meters=meters,
            lease_s=settings.lease_s,
            run_time_max_s=settings.run_time_max_s,
        )
        await stack.enter_async_context(upkeep.running())
        yield queue


@contextlib.asynccontextmanager
async def _writing(log: EventLog) -> AsyncIterator[None]:
    """Store events while the block lasts, and then what is left."""
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(log.write())
        try:
            yield
        finally:
            log.close()
            await writer

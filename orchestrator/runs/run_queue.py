"""Runs that wait and runs that are driven: first in, first out, a bounded number at a time."""

from __future__ import annotations

import asyncio
import collections
import contextvars
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from orchestrator.errors import QueueFullError, RunCancelledError, RunInterruptedError
from orchestrator.runs.record import RunRecord
from orchestrator.runs.stop_wish import Reason, StopWish

Drive = Callable[[str, RunRecord, StopWish], Awaitable[None]]


class RunQueue:
    """The queue; an async context manager. Leaving it stops what runs, and waits for that."""

    def __init__(self, drive: Drive, *, running_max: int, waiting_max: int) -> None:
        self._drive = drive
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._waiting: collections.OrderedDict[str, tuple[str, RunRecord, StopWish]] = (
            collections.OrderedDict()
        )
        self._running: dict[str, StopWish] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for run_id in [*self._waiting, *self._running]:
            self._stop(run_id, RunInterruptedError)
        await self._tasks.__aexit__(kind, error, traceback)

    def check_room(self) -> None:
        """Raise QueueFullError where no further run may wait."""
        if len(self._waiting) >= self._waiting_max:
            raise QueueFullError(self._waiting_max)

    def add(self, tenant: str, record: RunRecord) -> None:
        """Drive a stored run when its turn has come."""
        self._waiting[record.run_id] = (tenant, record, StopWish())
        self._start_next()

    def cancel(self, run_id: str) -> None:
        """Stop a run that waits or runs, without waiting for that; else do nothing."""
        self._stop(run_id, RunCancelledError)

    def _stop(self, run_id: str, reason: Reason) -> None:
        if run_id in self._waiting:
            tenant, record, wish = self._waiting.pop(run_id)
            wish.wish(reason)
            self._start(tenant, record, wish)  # ends at once, so it need not wait its turn
        elif run_id in self._running:
            self._running[run_id].wish(reason)

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self._running_max:
            _, (tenant, record, wish) = self._waiting.popitem(last=False)
            self._start(tenant, record, wish)

    def _start(self, tenant: str, record: RunRecord, wish: StopWish) -> None:
        self._running[record.run_id] = wish
        # An empty context: the deadline and the trace of the call that made the run are not its.
        self._tasks.create_task(self._run(tenant, record, wish), context=contextvars.Context())

    async def _run(self, tenant: str, record: RunRecord, wish: StopWish) -> None:
        try:
            await self._drive(tenant, record, wish)
        finally:
            del self._running[record.run_id]
            self._start_next()

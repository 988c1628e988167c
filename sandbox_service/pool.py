"""The workers of the service: started before anything else, replaced when they die."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sandbox_service.errors import CapacityError
from sandbox_service.guest_build import GuestBuild
from sandbox_service.jail.wall import Wall
from sandbox_service.worker_process import WORKER_COMMAND, WorkerProcess, WorkerStartError

_log = logging.getLogger(__name__)
_security = logging.getLogger("fathom.security")
_RETRY_S = 1.0
_RETRY_MAX_S = 30.0


class WorkerPool:
    """A fixed number of worker processes; a context manager that ends them."""

    def __init__(
        self,
        build: GuestBuild,
        count: int,
        command: Sequence[str] = WORKER_COMMAND,
        *,
        niceness: int = 0,
        require_jail: bool = False,
        worker_sessions_max: int = 0,
    ) -> None:
        """Describe the workers; see WorkerProcess for what they are started with.

        One holds at most `worker_sessions_max` sessions at a time; 0 sets no bound.
        """
        self.build = build
        """The guest that the workers run."""
        self._count = count
        self._worker_sessions_max = worker_sessions_max
        self._new_worker = functools.partial(
            WorkerProcess, build, command, niceness=niceness, require_jail=require_jail
        )
        self._workers: list[WorkerProcess] = []
        self._added = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start the workers; raises WorkerStartError where the guest does not load, or a wall
        that must stand does not."""
        workers = [self._new_worker() for _ in range(self._count)]
        try:
            await asyncio.gather(*[worker.greet() for worker in workers])
        except BaseException:
            for worker in workers:
                await worker.end()
            raise
        self._workers = list(workers)
        self._log_walls()
        await self._tasks.__aenter__()
        self._keepers = [self._tasks.create_task(self._keep(worker)) for worker in workers]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that live."""
        return [worker for worker in self._workers if not worker.death]

    @property
    def walls(self) -> list[Wall]:
        """The walls around the workers, in the order they were raised; one that is missing
        around any of them counts as missing."""
        walls: dict[str, Wall] = {}
        for worker in self.workers:
            for wall in worker.walls:
                if wall.name not in walls or not wall.raised:
                    walls[wall.name] = wall
        return list(walls.values())

    async def wait_for_worker(self, timeout_s: float) -> None:
        """Wait until a worker lives; returns after a time in any case."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.workers:
                    self._added.clear()
                    await self._added.wait()

    def least_busy(self) -> WorkerProcess:
        """Return the worker with the fewest sessions; CapacityError where none can take one."""
        if not self.workers:
            raise CapacityError("every worker is being restarted")
        worker = min(self.workers, key=lambda worker: worker.session_count)
        if 0 < self._worker_sessions_max <= worker.session_count:
            raise CapacityError(f"every worker has its {self._worker_sessions_max} sessions")
        return worker

    def _log_walls(self) -> None:
        for wall in self.walls:
            if wall.raised:
                _log.info("the wall `%s` stands around every worker", wall.name)
            else:
                _log.warning("the wall `%s` does not stand: %s", wall.name, wall.detail)

    async def _keep(self, worker: WorkerProcess) -> None:
        """Serve one place in the pool: a worker, then its replacement, and so on."""
        while True:
            try:
                await worker.serve()
            finally:
                self._workers.remove(worker)
            _log.error("worker %d died: %s", worker.pid, worker.death)
            if worker.made_a_deadly_call:
                _security.error("worker %d made a system call of an attack's", worker.pid)
            worker = await self._replacement()
            self._workers.append(worker)
            self._added.set()

    async def _replacement(self) -> WorkerProcess:
        delay_s = _RETRY_S
        while True:
            try:
                return await self._greeted(self._new_worker())
            except (WorkerStartError, OSError) as error:  # or no process is left to start
                _log.error("a worker could not be replaced: %s", error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RETRY_MAX_S)

    async def _greeted(self, worker: WorkerProcess) -> WorkerProcess:
        try:
            await worker.greet()
        except BaseException:
            await worker.end()
            raise
        return worker

"""All sessions of the service: made, found, listed, evicted when idle, remembered when lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from common.errors import NotFoundError, RequestIdReusedError
from sandbox_service import frames
from sandbox_service.errors import (
    CapacityError,
    ContextTooLargeError,
    ContextUnreadableError,
    SessionLostError,
)
from sandbox_service.limits import Limits
from sandbox_service.objects import ObjectError, ObjectStore
from sandbox_service.pool import WorkerPool
from sandbox_service.session import Session, SessionState
from sandbox_service.worker_process import WorkerProcess
from sandbox_service.worker_session import OpenFailedError, WorkerLostError, WorkerSession

_log = logging.getLogger(__name__)
_SWEEP_S = 1.0
_LOST_REMEMBERED_S = 3_600.0
_REQUEST_IDS_REMEMBERED_S = 600.0
DEFAULT_SUB_TIER = "sub"


@dataclass(frozen=True, kw_only=True)
class ContextBlob:
    """A context to mount and where its bytes are."""

    mount: frames.Mount
    """What to make of it."""
    key: str
    """Key of the blob."""
    size_bytes: int
    """Size of the blob."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a new session is to be."""

    limits: Limits
    """Limits in force."""
    contexts: Sequence[ContextBlob]
    """Contexts to load."""
    idle_ttl_s: float
    """Deleted after this long without a call."""
    run_token: str = ""
    """Sent with each sub-call."""
    sub_tier: str = DEFAULT_SUB_TIER
    """What a sub-call asks where the code names nothing."""
    labels: Mapping[str, str]
    """The caller's own bookkeeping."""


class SessionTable:
    """The sessions; a context manager that sweeps out the idle ones and ends all of them."""

    def __init__(self, pool: WorkerPool, objects: ObjectStore, sessions_max: int) -> None:
        self.pool = pool
        """Where sessions run."""
        self.tasks = asyncio.TaskGroup()
        """Runs executions and the sweep."""
        self.sessions_max = sessions_max
        """Sessions at a time."""
        self._objects = objects
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._made = 0
        self._lost: dict[str, tuple[float, str]] = {}
        self._requests: dict[str, tuple[float, SessionOptions, asyncio.Future[Session]]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        self._sweeper = self.tasks.create_task(self._sweep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for session in list(self._sessions.values()):
            await session.close()
        await self.tasks.__aexit__(None, None, None)

    def __len__(self) -> int:
        self._notice_lost()
        return len(self._sessions)

    def count_by_state(self) -> dict[str, int]:
        """Return how many sessions are in each state; any thread may ask."""
        states = [session.state for session in list(self._sessions.values())]
        return {state.value: states.count(state) for state in SessionState}

    async def create(self, options: SessionOptions, request_id: str = "") -> Session:
        """Start a session, or return the one that a repeated `request_id` started.

        Raises CapacityError, ContextTooLargeError, ContextUnreadableError, SessionLostError or
        RequestIdReusedError.
        """
        if not request_id:
            return await self._create(options)
        while (known := self._requests.get(request_id)) is not None:
            if known[1] != options:
                raise RequestIdReusedError(request_id)
            await asyncio.wait((known[2],))
            if not known[2].cancelled():
                return known[2].result()
        future = asyncio.get_running_loop().create_future()
        self._requests[request_id] = (time.monotonic(), options, future)
        try:
            session = await self._create(options)
        except asyncio.CancelledError:
            del self._requests[request_id]
            future.cancel()  # who waits for it makes the session then
            raise
        except BaseException as error:
            del self._requests[request_id]
            future.set_exception(error)
            future.exception()  # seen here, where nobody else waits for it
            raise
        future.set_result(session)
        return session

    def find(self, name: str) -> Session:
        """Return a live session; raises NotFoundError or SessionLostError."""
        self._notice_lost()
        if name in self._lost:
            raise SessionLostError(name, self._lost[name][1])
        try:
            session = self._sessions[name]
        except KeyError:
            raise NotFoundError(name) from None
        session.touch()
        return session

    def page(self, after: int, size: int) -> list[Session]:
        """Return up to `size` live sessions, oldest first, whose number is above `after`."""
        self._notice_lost()
        later = (session for session in self._sessions.values() if session.number > after)
        return list(itertools.islice(later, size))

    async def delete(self, name: str) -> None:
        """End a session; raises NotFoundError or SessionLostError."""
        session = self.find(name)
        del self._sessions[name]
        await session.close()

    async def _create(self, options: SessionOptions) -> Session:
        if len(self) + self._opening >= self.sessions_max:
            raise CapacityError(f"all {self.sessions_max} sessions are taken")
        worker = self.pool.least_busy()
        name = f"sessions/{secrets.token_hex(10)}"
        self._opening += 1
        try:
            opened, frame = await self._open(worker, options)
        finally:
            self._opening -= 1
        self._made += 1
        session = Session(
            name,
            opened,
            number=self._made,
            memory_bytes=frame.memory_bytes,
            run_token=options.run_token,
            sub_tier=options.sub_tier,
            idle_ttl_s=options.idle_ttl_s,
            labels=options.labels,
        )
        self._sessions[name] = session
        return session

    async def _open(
        self, worker: WorkerProcess, options: SessionOptions
    ) -> tuple[WorkerSession, frames.Opened]:
        fds: list[int] = []
        try:
            for blob in options.contexts:
                fds.append(self._opened_blob(blob))  # noqa: PERF401  # those opened must be closed
            mounts = [blob.mount for blob in options.contexts]
            return await worker.open(options.limits, mounts, fds)
        except OpenFailedError as error:
            failed = error.failed
            if failed.problem == "too_large":
                raise ContextTooLargeError(
                    failed.variable, failed.bytes_needed, options.limits.memory_bytes_max
                ) from error
            raise ContextUnreadableError(failed.variable, failed.message) from error
        except WorkerLostError as error:
            # Nobody knows this session's name yet: another worker can have it.
            raise CapacityError(f"the worker died while it opened the session: {error}") from error
        finally:
            for fd in fds:
                os.close(fd)

    def _opened_blob(self, blob: ContextBlob) -> int:
        try:
            return self._objects.open(blob.key, blob.size_bytes)
        except ObjectError as error:
            raise ContextUnreadableError(blob.mount.variable, str(error)) from error

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._notice_lost()
            now = time.time()
            for session in [s for s in self._sessions.values() if s.expires_at <= now]:
                _log.info("%s was not used and is deleted", session.name)
                del self._sessions[session.name]
                await session.close()
            oldest = time.monotonic() - _REQUEST_IDS_REMEMBERED_S
            self._requests = {k: v for k, v in self._requests.items() if v[0] > oldest}
            forgotten = time.monotonic() - _LOST_REMEMBERED_S
            self._lost = {k: v for k, v in self._lost.items() if v[0] > forgotten}

    def _notice_lost(self) -> None:
        """Move the sessions of dead workers to the list of lost ones."""
        for name, session in list(self._sessions.items()):
            if session.state is SessionState.LOST:
                del self._sessions[name]
                self._lost[name] = (time.monotonic(), session.loss)

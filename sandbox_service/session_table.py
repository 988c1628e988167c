"""All sessions of the service: made, copied, found, listed, evicted, and remembered when lost."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import secrets
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Self

from common.errors import NotFoundError
from sandbox_service import host_memory
from sandbox_service.checkpoints import Checkpoint, CheckpointStore, Manifest
from sandbox_service.completion import to_its_end
from sandbox_service.context_mounts import ContextMounts
from sandbox_service.errors import (
    CapacityError,
    CheckpointDamagedError,
    ObjectStoreAwayError,
    SessionBusyError,
    SessionLostError,
    StorageFullError,
)
from sandbox_service.layer_store import LayerDamagedError, LayerStore
from sandbox_service.lost_sessions import LostSessions
from sandbox_service.memory_watch import MemoryGauge
from sandbox_service.objects import ObjectError, ObjectsAwayError, ObjectsFullError, ObjectStore
from sandbox_service.pool import WorkerPool
from sandbox_service.request_ids import RequestIds
from sandbox_service.residence import Residence
from sandbox_service.session import Session, SessionState
from sandbox_service.session_memory import SessionMemory
from sandbox_service.session_opener import SessionOpener
from sandbox_service.session_options import SessionOptions, SessionUse
from sandbox_service.worker_session import WorkerLostError

_log = logging.getLogger(__name__)
_security = logging.getLogger("fathom.security")
_SWEEP_S = 1.0
_LAZY_BYTES_MIN = 256 << 20


class SessionTable:
    """The sessions; a context manager that sweeps out the idle ones and ends all of them."""

    def __init__(
        self,
        pool: WorkerPool,
        objects: ObjectStore,
        sessions_max: int,
        *,
        lazy_bytes_min: int = _LAZY_BYTES_MIN,
        gauge: MemoryGauge | None = None,
    ) -> None:
        """Run sessions in a pool's workers, up to a number, those evicted included.

        Contexts above `lazy_bytes_min` are mounted by reference. The gauge says whether there is
        memory for another session; without one there always is.
        """
        self.pool = pool
        """Where sessions run."""
        self.tasks = asyncio.TaskGroup()
        """Runs executions and the sweep."""
        self.sessions_max = sessions_max
        """Sessions at a time."""
        self._gauge = gauge
        self._store = LayerStore(objects)
        self._checkpoints = CheckpointStore(objects, pool.build.digest)
        self._mounts = ContextMounts(objects, lazy_bytes_min)
        self._opener = SessionOpener(pool, self._mounts, self._store)
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._made = 0
        self._lost = LostSessions()
        self._requests: RequestIds[Session] = RequestIds()
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
        await self._mounts.close()
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

        Raises CapacityError, ContextTooLargeError, ContextUnreadableError, ObjectStoreAwayError or
        RequestIdReusedError.
        """
        use = SessionUse(determinism=options.determinism)
        return await self._requests.once(
            request_id,
            options,
            lambda: self._started(options, use, SessionMemory.new(), is_new=True),
        )

    async def fork(
        self,
        name: str,
        *,
        run_token: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Session:
        """Copy a session, its memory and all that it has used; both go on apart.

        Raises SessionBusyError, CapacityError, NotFoundError, SessionLostError or
        RequestIdReusedError.
        """

        async def make() -> Session:
            session = self.find(name)
            self._require_room()
            memory, use = await session.copied_memory(), session.use
            options = dataclasses.replace(
                session.options, run_token=run_token, labels=labels or session.labels
            )
            return await self._started(options, use, memory)

        return await self._requests.once(request_id, (name, run_token, labels), make)

    async def checkpoint(self, name: str, owner: str = "") -> Checkpoint:
        """Store a session as it is now, for an owner; it may be used meanwhile.

        Raises SessionBusyError, NotFoundError, SessionLostError, StorageFullError,
        ObjectStoreAwayError, or CapacityError where it is not taken for another reason.
        """
        session = self.find(name)
        memory, use = await session.copied_memory(), session.use
        try:
            stored = await to_its_end(self._checkpoints.save(session.options, use, memory, owner))
        except LayerDamagedError as error:
            raise SessionLostError(name, str(error), session.checkpoint_key) from error
        except ObjectsFullError as error:
            raise StorageFullError("the object store") from error
        except ObjectsAwayError as error:
            raise ObjectStoreAwayError from error
        except ObjectError as error:
            raise CapacityError(f"the checkpoint cannot be stored: {error}") from error
        finally:
            await memory.close(self._store)
        session.checkpoint_key = stored.key
        return stored

    async def delete_checkpoints(
        self, owner: str, kept_keys: Collection[str], *, age_min_s: float
    ) -> int:
        """Delete an owner's checkpoints, but for those that are named or younger; return how many
        objects that were. Raises ObjectStoreAwayError."""
        try:
            return await to_its_end(self._checkpoints.delete(owner, kept_keys, age_min_s=age_min_s))
        except ObjectError as error:
            raise ObjectStoreAwayError from error

    async def manifest(self, key: str) -> Manifest:
        """Return what a checkpoint is made of.

        Raises NotFoundError, CheckpointDamagedError, CheckpointIncompatibleError or
        ObjectStoreAwayError.
        """
        return await self._checkpoints.load(key)

    async def restore(
        self, key: str, manifest: Manifest, options: SessionOptions, request_id: str = ""
    ) -> Session:
        """Make a session of a checkpoint.

        Raises CapacityError, CheckpointDamagedError, ContextUnreadableError, ObjectStoreAwayError
        or RequestIdReusedError.
        """

        async def make() -> Session:
            memory = self._checkpoints.memory_of(key, manifest)
            try:
                return await self._started(options, manifest.use, memory, key)
            except WorkerLostError as error:
                raise CheckpointDamagedError(key, str(error)) from error

        return await self._requests.once(request_id, (key, options), make)

    def find(self, name: str) -> Session:
        """Return a live session; raises NotFoundError or SessionLostError."""
        self._notice_lost()
        self._lost.check(name)
        try:
            session = self._sessions[name]
        except KeyError:
            raise NotFoundError(name) from None
        session.touch()
        return session

    def page(self, after: int, size: int, labels: Mapping[str, str] | None = None) -> list[Session]:
        """Return up to `size` live sessions, oldest first, whose number is above `after`, and that
        have all of these labels."""
        self._notice_lost()
        wanted = (labels or {}).items()
        later = (
            session
            for session in self._sessions.values()
            if session.number > after and wanted <= session.labels.items()
        )
        return list(itertools.islice(later, size))

    async def delete(self, name: str) -> None:
        """End a session; raises NotFoundError or SessionLostError."""
        session = self.find(name)
        self._forget(session)
        await session.close()

    def memory_bytes(self) -> int:
        """Return the memory of the workers and of the sessions' layers."""
        layers = {
            file.fd: file.data_bytes
            for session in self._sessions.values()
            for file in session.memory.files()
        }
        workers = host_memory.private_bytes(worker.pid for worker in self.pool.workers)
        return workers + sum(layers.values())

    def idle_sessions(self) -> list[Session]:
        """Return the sessions that can be evicted, the one unused for longest first."""
        idle = [
            session
            for session in self._sessions.values()
            if session.state in (SessionState.IDLE, SessionState.EVICTED)
            and session.memory.is_resident
            and session.is_saved
        ]
        return sorted(idle, key=lambda session: session.used_at)

    def busy_sessions(self) -> list[Session]:
        """Return the sessions in which something runs."""
        return [session for session in self._sessions.values() if session.is_running]

    def end_greedy_worker(self) -> bool:
        """End a worker that has taken more memory than its sessions may; returns whether one
        did."""
        for worker in self.pool.workers:
            private_bytes = host_memory.private_bytes([worker.pid])
            if private_bytes > worker.memory_bytes_max:
                _security.error("worker %d took %d bytes and is ended", worker.pid, private_bytes)
                worker.kill(f"the worker took {private_bytes} bytes of memory")
                return True
        return False

    async def evict(self, session: Session) -> None:
        """Put an idle session into the object store until it is used again.

        One that is used meanwhile stays, as does one that cannot be stored.
        """
        try:
            memory, executions = await session.copied_memory(), session.executions
        except (SessionBusyError, SessionLostError):
            return
        try:
            await to_its_end(memory.spill(self._store))
        except ObjectError as error:
            _log.warning("%s cannot be evicted: %s", session.name, error)
            return
        finally:
            await memory.close(self._store)
        await session.depart(executions)

    async def _started(
        self,
        options: SessionOptions,
        use: SessionUse,
        memory: SessionMemory,
        checkpoint_key: str = "",
        *,
        is_new: bool = False,
    ) -> Session:
        """Bring a session into a worker and give it a name; takes over its memory.

        Raises WorkerLostError where what is stored of it is damaged.
        """
        residence = Residence(options, memory, self._opener)
        try:
            self._require_room()
            await self._enter(residence, None if is_new else use)
        except BaseException:
            await residence.close()
            raise
        self._made += 1
        name = f"sessions/{secrets.token_hex(10)}"
        session = Session(name, self._made, residence, use, checkpoint_key)
        self._sessions[name] = session
        return session

    async def _enter(self, residence: Residence, use: SessionUse | None) -> None:
        self._opening += 1
        try:
            if use is None:
                await residence.begin()
            else:
                await residence.arrive(use)
        finally:
            self._opening -= 1

    def _require_room(self) -> None:
        if len(self) + self._opening >= self.sessions_max:
            raise CapacityError(f"all {self.sessions_max} sessions are taken")
        if self._gauge is not None:
            self._gauge.require_room()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._notice_lost()
            for session in list(self._sessions.values()):
                # One that was used or deleted while another was closed is not to be touched.
                if session.expires_at <= time.time() and session.name in self._sessions:
                    _log.info("%s was not used and is deleted", session.name)
                    self._forget(session)
                    await session.close()
            self._requests.forget_old()
            self._lost.forget_old()

    def _forget(self, session: Session) -> None:
        del self._sessions[session.name]
        self._requests.forget(session)

    def _notice_lost(self) -> None:
        """Move the sessions that are lost to the list of those."""
        for session in list(self._sessions.values()):
            if session.state is SessionState.LOST:
                self._forget(session)
                self._lost.add(session)
                self.tasks.create_task(session.close())

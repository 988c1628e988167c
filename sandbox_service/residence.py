"""Where a session's guest is: in a worker, or in its layers only, from which it comes back.

A worker that dies takes nothing with it but the cell that ran. One caller moves a session at a
time; that nothing runs in it meanwhile is the caller's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from typing import Protocol

from sandbox_service.completion import to_its_end
from sandbox_service.errors import CapacityError, ObjectStoreAwayError
from sandbox_service.layer_store import LayerDamagedError, LayerStore
from sandbox_service.layers import LayerError
from sandbox_service.objects import ObjectError, ObjectsAwayError
from sandbox_service.session_memory import SessionMemory
from sandbox_service.session_opener import OpenedSession
from sandbox_service.session_options import SessionOptions, SessionUse
from sandbox_service.worker_session import WorkerLostError, WorkerSession

_log = logging.getLogger(__name__)
_security = logging.getLogger("fathom.security")
_SAVE_TIMEOUT_S = 60.0
"""For the worker to write down what a cell has changed, gigabytes at most."""


class Opener(Protocol):
    """The way into a worker."""

    store: LayerStore
    """Where layers are when they are not in memory."""

    async def open(self, options: SessionOptions, memory: SessionMemory) -> OpenedSession:
        """Start a session: load its contexts into an empty memory."""

    async def reopen(
        self, options: SessionOptions, use: SessionUse, memory: SessionMemory
    ) -> OpenedSession:
        """Start a session that its memory holds already."""


class Residence:
    """A session's place, and its way from one to another."""

    def __init__(self, options: SessionOptions, memory: SessionMemory, opener: Opener) -> None:
        """Begin outside of any worker, with a memory to take over."""
        self.options = options
        """What the session is; its contexts as they were mounted at first."""
        self.moving = asyncio.Lock()
        """Held by whoever moves the session, or needs it not to be moved."""
        self.memory_bytes = memory.memory_bytes
        """Linear memory as of the last opening."""
        self._memory = memory
        self._opener = opener
        self._worker: WorkerSession | None = None
        self._loss = ""

    @property
    def is_in_worker(self) -> bool:
        """Whether a worker has it."""
        return self._worker is not None and not self._worker.loss

    @property
    def is_saved(self) -> bool:
        """Whether its layers hold its memory as of its last execution."""
        return self._worker is None or self._worker.is_saved

    @property
    def memory(self) -> SessionMemory:
        """Its layers."""
        return self._memory

    @property
    def loss(self) -> str:
        """Why it is lost for good; empty while it is not."""
        worker = self._worker
        if not self._loss and worker is not None and worker.is_gone and not worker.can_go_on:
            return worker.loss
        return self._loss

    async def begin(self) -> None:
        """Start it with its contexts, in a fresh memory; raises what the opener does."""
        self._take(await self._opener.open(self.options, self._memory))

    async def arrive(self, use: SessionUse) -> WorkerSession:
        """Return the worker that has it, after bringing it into one where need be.

        Raises WorkerLostError where it is lost, CapacityError, ContextUnreadableError or
        ObjectStoreAwayError.
        """
        worker = self._worker
        has_contexts = not use.executions and self._memory.holds_contexts
        if worker is not None and not (worker.loss or self.moving.locked() or has_contexts):
            return worker
        async with self.moving:
            await self._settle()
            if self._worker is None:
                await self._come_back(use)
            elif has_contexts and self._worker.is_saved:
                # So that no copy of the session stores its contexts again.
                await to_its_end(self._finish())
            assert self._worker is not None
            return self._worker

    async def copied_memory(self) -> SessionMemory:
        """Return what its memory is now, for another session or the object store; the caller
        closes it. Only under `moving`, at rest.

        Raises WorkerLostError where it is lost.
        """
        if self._worker is not None:
            with contextlib.suppress(WorkerLostError):  # what that means is settled next
                await self._worker.saved(_SAVE_TIMEOUT_S)
        await self._settle()
        await to_its_end(self._finish())
        return self._memory.shared()

    async def depart(self) -> None:
        """Leave worker and memory: all is stored. Only under `moving`, at rest."""
        await self._leave_worker()
        self._worker = None
        self._memory.leave()

    async def close(self) -> None:
        """End it wherever it is, also for a caller that is cancelled: nobody else would."""
        await to_its_end(self._close())

    async def _close(self) -> None:
        self._loss = self._loss or "the session was deleted"
        await self._leave_worker()
        async with self.moving:
            await self._leave_worker()  # the one that it was on its way to
            await self._memory.close(self._opener.store)
            # It is remembered for a while, and a description of many documents is large.
            self.options = dataclasses.replace(self.options, contexts=[])

    async def _leave_worker(self) -> None:
        if self._worker is not None:
            await self._worker.close()

    async def _settle(self) -> None:
        """Notice that the worker has it no more; raises WorkerLostError where it is lost."""
        worker = self._worker
        if not self._loss and worker is not None and worker.loss:
            await worker.gone()
            if worker.can_go_on:
                self._worker = None
            else:
                self._loss = worker.loss
        if self._loss:
            raise WorkerLostError(self._loss)

    async def _come_back(self, use: SessionUse) -> None:
        """Bring it into a worker, from its layers."""
        # So that the worker that it was in cannot alter its layers any more.
        await to_its_end(self._finish())
        limit = self.options.limits.memory_bytes_max
        try:
            await to_its_end(self._memory.bring_back(self._opener.store, limit))
        except LayerDamagedError as error:
            raise self._lose(f"what was stored of it is damaged: {error}") from error
        except ObjectsAwayError as error:
            raise ObjectStoreAwayError from error
        except ObjectError as error:
            raise CapacityError(f"the session's memory cannot be read: {error}") from error
        self._take(await self._opener.reopen(self.options, use, self._memory))

    async def _finish(self) -> None:
        """Finish the top layer, and tell the worker where to go on."""
        try:
            is_changed = self._memory.finish(self.options.limits.memory_bytes_max)
        except LayerError as error:
            if self._worker is not None:
                _security.error("a worker spoilt a session's layers and is ended: %s", error)
                self._worker.kill_worker(f"the worker spoilt a session's layers: {error}")
            raise self._lose(f"the worker spoilt its layers: {error}") from error
        if not is_changed:
            return
        try:
            await self._memory.merge(self._opener.store)
        except OSError as error:  # no memory or file left for it; the next time may do
            _log.warning("the layers of a session stay unmerged: %s", error)
        if self._worker is not None:
            with contextlib.suppress(WorkerLostError):  # it goes on from these very layers
                await self._worker.relayer(self._memory.fds)

    def _take(self, opened: OpenedSession) -> None:
        self._worker = opened.worker
        self.memory_bytes = opened.memory_bytes
        self.options = dataclasses.replace(self.options, contexts=opened.contexts)

    def _lose(self, cause: str) -> WorkerLostError:
        self._loss = cause
        return WorkerLostError(cause)

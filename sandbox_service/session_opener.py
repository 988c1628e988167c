"""Opens sessions in workers: a fresh one with its contexts, or one that its layers hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sandbox_service import frames
from sandbox_service.context_mounts import ContextBlob, ContextMounts, OpenedContexts
from sandbox_service.errors import CapacityError, ContextTooLargeError, ContextUnreadableError
from sandbox_service.layer_store import LayerStore
from sandbox_service.pool import WorkerPool
from sandbox_service.session_memory import SessionMemory
from sandbox_service.session_options import SessionOptions, SessionUse
from sandbox_service.worker_process import OPEN_TIMEOUT_S
from sandbox_service.worker_session import OpenFailedError, WorkerLostError, WorkerSession

_REOPEN_TIMEOUT_S = 30.0
"""Nothing is loaded then: memory is mapped."""
_WORKER_WAIT_S = 15.0
"""So long a session whose worker died waits for another one."""


@dataclass(frozen=True, kw_only=True)
class OpenedSession:
    """A session that is in a worker."""

    worker: WorkerSession
    """Where it is."""
    memory_bytes: int
    """Linear memory."""
    contexts: list[ContextBlob]
    """Its contexts, those that are mounted by reference marked so."""


class SessionOpener:
    """The way into a worker."""

    def __init__(self, pool: WorkerPool, mounts: ContextMounts, store: LayerStore) -> None:
        self.store = store
        """Where layers are when they are not in memory."""
        self._pool = pool
        self._mounts = mounts

    async def open(self, options: SessionOptions, memory: SessionMemory) -> OpenedSession:
        """Start a session: load its contexts into an empty memory.

        Raises CapacityError, ContextTooLargeError, ContextUnreadableError or ObjectStoreAwayError.
        """
        self._pool.least_busy()  # without a worker no context needs to be opened
        contexts = await self._mounts.open(options.contexts, options.limits)
        return await self._opened(options, SessionUse(), memory, contexts, is_restored=False)

    async def reopen(
        self, options: SessionOptions, use: SessionUse, memory: SessionMemory
    ) -> OpenedSession:
        """Start a session that its memory holds already; waits for a worker where none lives.

        Raises CapacityError, ContextUnreadableError or ObjectStoreAwayError.
        """
        await self._pool.wait_for_worker(_WORKER_WAIT_S)
        contexts = await self._mounts.reopen(options.contexts)
        return await self._opened(options, use, memory, contexts, is_restored=True)

    async def _opened(
        self,
        options: SessionOptions,
        use: SessionUse,
        memory: SessionMemory,
        contexts: OpenedContexts,
        *,
        is_restored: bool,
    ) -> OpenedSession:
        layers = memory.fds
        opening = frames.Open(
            session=0,  # the worker's own numbers
            limits=options.limits,
            mounts=contexts.mounts,
            profile=options.profile,
            layers=len(layers) - 1,
            is_restored=is_restored,
            determinism=use.determinism if is_restored else options.determinism,
            fuel_used=use.fuel_used,
            time_used_s=use.time_used_s,
        )
        timeout_s = _REOPEN_TIMEOUT_S if is_restored else OPEN_TIMEOUT_S
        try:
            worker, opened = await self._pool.least_busy().open(
                opening, [*layers, *contexts.fds], timeout_s
            )
        except OpenFailedError as error:
            failed = error.failed
            if failed.problem == "too_large":
                raise ContextTooLargeError(
                    failed.variable, failed.bytes_needed, options.limits.memory_bytes_max
                ) from error
            raise ContextUnreadableError(failed.variable, failed.message) from error
        except WorkerLostError as error:
            # Nothing ran yet: another worker can have it.
            raise CapacityError(f"the worker died while it opened the session: {error}") from error
        finally:
            contexts.close()
        return OpenedSession(
            worker=worker,
            memory_bytes=opened.memory_bytes,
            contexts=[
                replace(blob, mount=mount)
                for blob, mount in zip(options.contexts, contexts.mounts, strict=True)
            ],
        )

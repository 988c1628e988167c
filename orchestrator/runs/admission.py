"""How runs come in: checked, stored and queued. And what becomes of those that a former process
left unfinished.
"""

from __future__ import annotations

import asyncio
import hashlib

from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.errors import InvalidFieldError
from orchestrator.contexts.store import ContextStore
from orchestrator.errors import RunInterruptedError
from orchestrator.model_catalog import ModelCatalog
from orchestrator.runs.event_log import EventLog
from orchestrator.runs.limits import RunLimits
from orchestrator.runs.record import RunRecord
from orchestrator.runs.run_queue import RunQueue
from orchestrator.runs.spec import complete_spec
from orchestrator.runs.store import RequestKey, RunStore

REQUEST_ID_CHARACTERS_MAX = 256


class Admission:
    """The way in for runs."""

    def __init__(
        self,
        runs: RunStore,
        contexts: ContextStore,
        catalog: ModelCatalog,
        log: EventLog,
        queue: RunQueue,
        *,
        defaults: RunLimits,
        ceilings: RunLimits,
    ) -> None:
        self._runs = runs
        self._contexts = contexts
        self._catalog = catalog
        self._log = log
        self._queue = queue
        self._defaults = defaults
        self._ceilings = ceilings

    async def create(self, tenant: str, spec: RunSpec, request_id: str) -> Run:
        """Return a new queued run, or the one that the same request made before.

        Raises an InvalidFieldError, LimitAboveCeilingError or NotBuiltYetError that names the
        field, NotFoundError, ModelNotOfferedError, RequestIdReusedError, QueueFullError, and
        ReceivedError where the gateway does not answer.
        """
        if len(request_id) > REQUEST_ID_CHARACTERS_MAX:
            raise InvalidFieldError(
                "request_id", f"must have at most {REQUEST_ID_CHARACTERS_MAX} characters"
            )
        complete = complete_spec(spec, defaults=self._defaults, ceilings=self._ceilings)
        key: RequestKey | None = None
        if request_id:
            data = spec.SerializeToString(deterministic=True)
            key = RequestKey(request_id, hashlib.blake2b(data, digest_size=32).digest())
            earlier = await self._runs.find_request(tenant, key)
            if earlier is not None:
                return earlier.whole()
        await self._contexts.get(tenant, spec.context.removeprefix("contexts/"))
        await self._catalog.facts(tenant, root_tier=complete.root_tier, sub_tier=complete.sub_tier)
        # A caller that hangs up between the commit and the queue would leave a run behind that
        # nobody drives: storing and queueing is one step that goes on without the caller.
        return await asyncio.shield(self._store(tenant, RunRecord.queued(complete), key))

    async def end_unfinished(self) -> None:
        """End the runs that a former process left unfinished. Call it once, before any run."""
        for record in await self._runs.unfinished():
            record.progress.state = Run.STATE_FAILED
            record.progress.error.CopyFrom(RunInterruptedError(record.head.name).to_status())
            record.progress.sub_calls_live = 0
            record.progress.end_time.GetCurrentTime()
            await self._runs.append({record.run_id: (record, [record.state_event()])})

    async def _store(self, tenant: str, record: RunRecord, key: RequestKey | None) -> Run:
        self._queue.check_room()
        event = record.state_event()
        self._log.open(record.run_id)
        try:
            stored = await self._runs.create(tenant, record, event, key)
        except BaseException:
            self._log.discard(record.run_id)
            raise
        if stored is not record:
            self._log.discard(record.run_id)
            return stored.whole()
        self._log.publish(record.run_id, [event])
        run = record.whole()
        self._queue.add(tenant, record)
        return run

"""How runs come in: checked, stored and queued."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib

from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from common.database import DatabaseAwayError
from common.errors import InvalidFieldError, ServiceError
from orchestrator.contexts.store import ContextStore
from orchestrator.contexts.upload_plan import check_length
from orchestrator.conversations.conversation import Seat, StoredConversation
from orchestrator.conversations.store import ConversationStore
from orchestrator.errors import KillSwitchError
from orchestrator.model_catalog import ModelCatalog
from orchestrator.operations.kill_switches import KillSwitches
from orchestrator.profiles.profile import Profile
from orchestrator.profiles.profiles import Profiles
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.runs.fork import TakenOver
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RequestKey, RunStore
from orchestrator.runs.queue import RunQueue
from orchestrator.runs.spec_defaults import SpecDefaults

REQUEST_ID_CHARACTERS_MAX = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admission:
    """The way in for runs."""

    defaults: SpecDefaults
    """What a spec leaves open."""
    profiles: Profiles
    """What a spec may name."""
    conversations: ConversationStore
    """What it may join."""
    contexts: ContextStore
    """What it may be about."""
    catalog: ModelCatalog
    """Which models it may ask."""
    schemas: AnswerSchemas
    """Checks what its answer is to fit."""
    switches: KillSwitches
    """What is stopped."""
    runs: RunStore
    """Where runs are stored."""
    log: EventLog
    """Whose watchers hear of them."""
    queue: RunQueue
    """Where they wait."""

    async def create(
        self,
        tenant: str,
        spec: RunSpec,
        request_id: str,
        *,
        created_by: str = "",
        taken: TakenOver | None = None,
    ) -> Run:
        """Return a new queued run, or the one that the same request made before. `created_by` is
        the name of the caller's API key, `taken` is what a fork takes over.

        Raises an InvalidFieldError or LimitAboveCeilingError that names the field, NotFoundError,
        ModelNotOfferedError, RequestIdReusedError, QueueFullError, and ReceivedError where the
        gateway does not answer, KillSwitchError, ConversationBusyError,
        ConversationLimitExceededError, and DatabaseAwayError.
        """
        check_length("request_id", request_id, REQUEST_ID_CHARACTERS_MAX)
        profile = await self._profile(tenant, spec, taken)
        asked = spec
        # What is wrong is told before anything is looked up.
        spec = self.defaults.complete(asked, profile)
        key: RequestKey | None = None
        if request_id:
            data = asked.SerializeToString(deterministic=True)
            if taken is not None:
                data += f"{taken.run}/{taken.after_turn}".encode()
            key = RequestKey(request_id, hashlib.blake2b(data, digest_size=32).digest())
            earlier = await self.runs.find_request(tenant, key)
            if earlier is not None:
                return earlier.whole()
        try:
            record, seat = await self._admitted(tenant, asked, spec, profile, taken)
            record.head.created_by = created_by
            # A caller that hangs up between the commit and the queue would leave a run behind that
            # is only found a second later: storing and waking is one step that goes on without it.
            return await asyncio.shield(self._store(tenant, record, key, seat, taken))
        except DatabaseAwayError:
            raise
        except ServiceError:
            # What stands in its way may be the run that it has made itself meanwhile: its caller
            # hung up and asks again.
            earlier = None if key is None else await self.runs.find_request(tenant, key)
            if earlier is None:
                raise
            return earlier.whole()

    async def _admitted(
        self,
        tenant: str,
        asked: RunSpec,
        spec: RunSpec,
        profile: Profile,
        taken: TakenOver | None,
    ) -> tuple[RunRecord, Seat | None]:
        """Return the run that is asked for, to be stored, and its seat in its conversation. `spec`
        is what is asked with the defaults, but for those that depend on the context's size."""
        await self._check(_targets(tenant, spec, taken), spec)
        conversation = await self._conversation(tenant, spec)
        context_id = spec.context.removeprefix("contexts/")
        context = await self.contexts.get(
            tenant, conversation.context_id if conversation is not None else context_id
        )
        complete = self.defaults.complete(
            asked, profile, size_bytes=context.size_bytes, documents=context.document_count
        )
        seat: Seat | None = None
        if conversation is not None:
            seat, complete.context = conversation.seat(), context.name
            conversation.lower(complete)
        await self.catalog.facts(tenant, root_tier=complete.root_tier, sub_tier=complete.sub_tier)
        record = RunRecord.queued(complete)
        if spec.profile:
            await self.profiles.keep(profile)
            record.head.profile_version = profile.version
        return record, seat

    async def check(self, tenant: str, spec: RunSpec) -> None:
        """Raise KillSwitchError or InvalidFieldError where no run of this spec would be begun, for
        reasons that `complete` does not see."""
        await self._check(_targets(tenant, spec, None), spec)

    async def _check(self, targets: list[str], spec: RunSpec) -> None:
        await self.switches.check(targets)
        if spec.answer_schema_json:
            await self.schemas.check_schema(spec.answer_schema_json)

    def complete(
        self, tenant: str, spec: RunSpec, *, size_bytes: int = 0, documents: int = 1
    ) -> RunSpec:
        """Return the spec with the defaults for a context of that size, and those of its
        profile."""
        profile = self.profiles.asked(tenant, spec.profile)
        return self.defaults.complete(spec, profile, size_bytes=size_bytes, documents=documents)

    async def _profile(self, tenant: str, spec: RunSpec, taken: TakenOver | None) -> Profile:
        """Return the profile of a run; a fork goes on with its original's version."""
        if taken is not None and spec.profile:
            return await self.profiles.kept(taken.profile_version)
        return self.profiles.asked(tenant, spec.profile)

    async def _conversation(self, tenant: str, spec: RunSpec) -> StoredConversation | None:
        """Return the conversation that a run is to join, which is about the run's context."""
        if not spec.conversation:
            return None
        name = spec.conversation.removeprefix("conversations/")
        conversation = await self.conversations.get(tenant, name)
        if spec.context not in {"", f"contexts/{conversation.context_id}"}:
            raise InvalidFieldError(
                "spec.context",
                f"must be unset or the conversation's, contexts/{conversation.context_id}",
            )
        return conversation

    async def _store(
        self,
        tenant: str,
        record: RunRecord,
        key: RequestKey | None,
        seat: Seat | None,
        taken: TakenOver | None,
    ) -> Run:
        event = record.state_event() if taken is None else taken.begin(record)
        events = () if taken is None else taken.events
        async with self.queue.room(tenant):
            stored = await self.runs.create(tenant, record, event, key, seat, events)
        if stored is record:
            self.log.wake(record.run_id)
            self.queue.wake()
            await self._stop_if_switched(tenant, record, taken)
        return stored.whole()

    async def _stop_if_switched(
        self, tenant: str, record: RunRecord, taken: TakenOver | None
    ) -> None:
        """Stop a run whose tenant or profile was stopped while it was being stored: the switch did
        not find it, and it did not meet the switch."""
        try:
            await self.switches.check(_targets(tenant, record.head.spec, taken))
        except KillSwitchError:
            await self.queue.cancel(record.run_id)


def _targets(tenant: str, spec: RunSpec, taken: TakenOver | None) -> list[str]:
    """Return what stops a run: to fork one that was stopped, alone or with what it is below or was
    forked from, would be to go on with it."""
    forked = () if taken is None else (taken.run, *taken.origins)
    return [f"tenants/{tenant}", *(name for name in (spec.profile, *forked) if name)]

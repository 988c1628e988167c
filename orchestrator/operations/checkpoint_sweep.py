"""Deletion of checkpoints that nothing needs any more: those of deleted runs and conversations, and
those that were stored and never told of.

The database says what is to go before anything goes, and forgets it after: what a killed process
leaves undone, the next sweep does, in any process.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from typing import Protocol

import grpc
from fathom.orchestrator.v1.run_event_pb2 import RunEvent

from common.errors import NotFoundError, ReceivedError
from orchestrator.conversations.store import ConversationStore
from orchestrator.runs.log.record import TERMINAL_STATES
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.sessions.checkpoint_owners import GRACE_S, CheckpointOwners, DueOwner

KEPT_KEYS_MAX = 10_000
"""What DeleteCheckpoints can be told to keep."""
_AT_ONCE = 100
_RETRY_S = 300.0
_log = logging.getLogger(__name__)


class CheckpointDoor(Protocol):
    """Where checkpoints are deleted."""

    async def delete_checkpoints(
        self, owner: str, kept_keys: Collection[str], *, age_min_s: float
    ) -> int:
        """Delete an owner's checkpoints, but for those that are named or younger; return how many
        objects that were. Raises ReceivedError."""


class RunLogs(Protocol):
    """Where what happened in runs is read."""

    def past(self, run_id: str) -> AsyncIterator[RunEvent]:
        """Yield the events of a run."""


class NeededCheckpoints:
    """Tells which of an owner's checkpoints something may still go on from."""

    def __init__(self, runs: RunStore, logs: RunLogs, conversations: ConversationStore) -> None:
        self._runs = runs
        self._logs = logs
        self._conversations = conversations

    async def keys(self, owner: DueOwner) -> set[str] | None:
        """Return their keys, of which some may be another owner's; None while a run is under way
        that may store another one. Raises NotFoundError where there is no such owner."""
        collection, _, identity = owner.name.partition("/")
        if collection == "conversations":
            return await self._of_conversation(owner.tenant, identity)
        record = await self._runs.get(owner.tenant, identity)
        if record.progress.state not in TERMINAL_STATES:
            return None
        return await self._told_of(identity)

    async def _of_conversation(self, tenant: str, identity: str) -> set[str] | None:
        found = await self._conversations.get(tenant, identity)
        if found.live_run:
            return None
        keys: set[str] = set()
        before = ""
        while run_ids := await self._conversations.run_ids(
            tenant, identity, before=before, count=_AT_ONCE
        ):
            for run_id in run_ids:
                keys |= await self._told_of(run_id)
            before = run_ids[-1]
        return keys

    async def _told_of(self, run_id: str) -> set[str]:
        """Return all that a run has told of: a fork may begin after any of its turns."""
        return {event.checkpoint_stored.key async for event in self._logs.past(run_id)} - {""}


class CheckpointSweep:
    """Has checkpoints deleted."""

    def __init__(
        self, owners: CheckpointOwners, needed: NeededCheckpoints, door: CheckpointDoor
    ) -> None:
        self._owners = owners
        self._needed = needed
        self._door = door

    async def sweep_all(self) -> None:
        """Sweep until nothing is due."""
        while await self.sweep() == _AT_ONCE:
            pass

    async def sweep(self) -> int:
        """Look at some owners that are due; return how many."""
        due = await self._owners.due(count=_AT_ONCE)
        for owner in due:
            try:
                await self._look_at(owner)
            except ReceivedError as error:
                _log.warning("checkpoints were not deleted", extra={"reason": error.reason_name})
                # Also where all is away: what is broken for this one alone says so too.
                await self._owners.look_again(owner, at_us=self._later_us(_RETRY_S))
                if error.code == grpc.StatusCode.UNAVAILABLE:
                    return 0
        return len(due)

    async def _look_at(self, owner: DueOwner) -> None:
        needed: set[str] | None = set()
        is_removed = owner.removed_us is not None
        if not is_removed:
            try:
                needed = await self._needed.keys(owner)
            except NotFoundError:
                is_removed = True
        if needed is None:
            await self._owners.look_again(owner, at_us=self._later_us(GRACE_S))
            return
        if len(needed) > KEPT_KEYS_MAX:
            # All that it has is kept until it is deleted itself: as many that were told of bound
            # what was not, which would be a few of a killed process.
            facts = {"owner": owner.name, "checkpoints": len(needed)}
            _log.warning("an owner has too many checkpoints to tell those that go", extra=facts)
            await self._owners.look_again(owner, at_us=None)
            return
        await self._door.delete_checkpoints(
            owner.owner, needed, age_min_s=0 if is_removed else GRACE_S
        )
        if not is_removed:
            await self._owners.look_again(owner, at_us=None)
            return
        # One that was being stored at that moment comes after its owner's end.
        late_us = (owner.removed_us or 0) + int(GRACE_S * 1e6)
        if self._owners.now_us() < late_us:
            await self._owners.look_again(owner, at_us=late_us)
        else:
            await self._owners.forget(owner)

    def _later_us(self, delay_s: float) -> int:
        return self._owners.now_us() + int(delay_s * 1e6)

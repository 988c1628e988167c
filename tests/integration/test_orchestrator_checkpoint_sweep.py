"""What becomes of checkpoints that nothing needs any more, on both databases."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.run_event_pb2 import CheckpointStored, RunEvent
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from sqlalchemy import select, update

from common.database import Database
from orchestrator import tables
from orchestrator.conversations.conversation import Seat
from orchestrator.conversations.request import new_conversation
from orchestrator.conversations.store import ConversationStore, let_go_of_run
from orchestrator.operations.checkpoint_sweep import CheckpointSweep, NeededCheckpoints
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.sessions.checkpoint_owners import (
    GRACE_S,
    CheckpointOwners,
    disown,
    owner_of,
)
from orchestrator.tables import MIGRATIONS
from tests.support.memory_neighbours import failure

TENANT = "acme"
RETRY_S = 300.0
"""Until one that failed is looked at again."""


class Door:
    """Notes what is to be deleted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, set[str], float]] = []
        self.failures: list[Exception] = []

    async def delete_checkpoints(
        self, owner: str, kept_keys: Collection[str], *, age_min_s: float
    ) -> int:
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append((owner, set(kept_keys), age_min_s))
        return 1


@dataclasses.dataclass
class Place:
    """A sweep, and a clock that can be moved."""

    database: Database
    door: Door = dataclasses.field(default_factory=Door)
    ahead_s: float = 0.0
    runs_made: int = 0

    def __post_init__(self) -> None:
        self.owners = CheckpointOwners(self.database, now_us=self.now_us)
        self.runs = RunStore(self.database)
        self.conversations = ConversationStore(self.database)
        log = EventLog(self.runs)
        needed = NeededCheckpoints(self.runs, log, self.conversations)
        self.sweep = CheckpointSweep(self.owners, needed, self.door)

    def now_us(self) -> int:
        return time.time_ns() // 1000 + int(self.ahead_s * 1e6)

    async def swept(self, *, after_s: float = 0.0) -> list[tuple[str, set[str], float]]:
        """Sweep once, so much later; return what was to be deleted."""
        self.ahead_s += after_s
        self.door.calls.clear()
        await self.sweep.sweep()
        return self.door.calls

    async def run(self, *keys: str, is_live: bool = False, seat: Seat | None = None) -> RunRecord:
        """Store a run with checkpoints."""
        conversation = f"conversations/{seat.conversation_id}" if seat is not None else ""
        record = RunRecord.queued(RunSpec(conversation=conversation))
        self.runs_made += 1
        record.head.name = record.head.root = f"runs/{self.runs_made:04}"
        events = [
            RunEvent(sequence=number, turn=number, checkpoint_stored=CheckpointStored(key=key))
            for number, key in enumerate(keys, start=2)
        ]
        record.progress.state = Run.STATE_RUNNING if is_live else Run.STATE_ANSWERED
        await self.runs.create(TENANT, record, RunEvent(sequence=1), None, seat, events)
        return record

    async def left(self) -> list[Any]:
        async with self.database.reading() as connection:
            return list((await connection.scalars(select(tables.checkpoint_owners.c.owner))).all())


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield Place(opened)
    await opened.close()


async def test_what_a_run_told_of_is_kept_and_the_rest_is_not(place: Place) -> None:
    """A checkpoint that was stored, and whose process died before the event, is found so."""
    record = await place.run("checkpoints/a", "checkpoints/b")
    await place.owners.note(TENANT, owner_of(record.head))

    assert await place.swept() == []
    assert await place.swept(after_s=GRACE_S) == [
        (f"runs-{record.run_id}", {"checkpoints/a", "checkpoints/b"}, GRACE_S)
    ]
    assert await place.swept(after_s=GRACE_S) == []


@pytest.mark.parametrize(("count", "is_swept"), [(3, True), (4, False)])
async def test_an_owner_with_more_checkpoints_than_can_be_named_keeps_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, count: int, is_swept: bool
) -> None:
    """And is not looked at again and again: the sandbox would refuse each call. Once it is deleted,
    all of them go."""
    monkeypatch.setattr("orchestrator.operations.checkpoint_sweep.KEPT_KEYS_MAX", 3)
    record = await place.run(*(f"checkpoints/{number}" for number in range(count)))
    owner = owner_of(record.head)
    await place.owners.note(TENANT, owner)

    assert len(await place.swept(after_s=GRACE_S)) == is_swept
    assert await place.swept(after_s=RETRY_S) == []
    async with place.database.writing() as connection:
        await disown(connection, record.head.name)
    assert await place.swept() == [(owner, set(), 0)]


async def test_a_run_under_way_is_looked_at_after_its_end(place: Place) -> None:
    record = await place.run("checkpoints/a", is_live=True)
    await place.owners.note(TENANT, owner_of(record.head))

    assert await place.swept(after_s=GRACE_S) == []

    async with place.database.writing() as connection:
        ended = update(tables.runs).values(state=Run.STATE_ANSWERED)
        ended = ended.values(progress=Run(state=Run.STATE_ANSWERED).SerializeToString())
        await connection.execute(ended)
    assert len(await place.swept(after_s=GRACE_S)) == 1


async def test_a_deleted_runs_checkpoints_go_at_once_and_once_more_later(place: Place) -> None:
    """The second time finds what was just being stored when the run was deleted."""
    record = await place.run("checkpoints/a")
    owner = owner_of(record.head)
    await place.owners.note(TENANT, owner)
    async with place.database.writing() as connection:
        await disown(connection, record.head.name)

    assert await place.swept() == [(owner, set(), 0)]
    assert await place.swept() == []
    assert await place.left() == [owner]
    assert await place.swept(after_s=GRACE_S) == [(owner, set(), 0)]
    assert await place.left() == []


async def test_an_owner_that_is_gone_unnoticed_keeps_nothing(place: Place) -> None:
    await place.owners.note(TENANT, "runs-gone")

    assert await place.swept(after_s=GRACE_S) == [("runs-gone", set(), 0)]
    assert await place.left() == []


async def test_a_deletion_that_fails_is_tried_again(place: Place) -> None:
    for each in ("runs-a", "runs-b"):
        await place.owners.note(TENANT, each)
    reason = ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE
    place.door.failures = [failure(grpc.StatusCode.UNAVAILABLE, reason)]

    assert await place.swept(after_s=GRACE_S) == []
    assert sorted(await place.left()) == ["runs-a", "runs-b"]
    assert len(await place.swept(after_s=RETRY_S)) == 2


async def test_one_whose_objects_are_always_away_holds_up_no_other(place: Place) -> None:
    """A blob that is not whole is told as a store that does not answer: without an end, nobody's
    checkpoints would be deleted any more."""
    for each in ("runs-a", "runs-b"):
        await place.owners.note(TENANT, each)
    away = failure(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_OBJECT_STORE_UNAVAILABLE)
    place.door.failures = [away]

    assert await place.swept(after_s=GRACE_S) == []
    assert await place.swept() == [("runs-b", set(), 0)]


async def test_one_that_cannot_be_deleted_holds_up_no_other(place: Place) -> None:
    for each in ("runs-a", "runs-b"):
        await place.owners.note(TENANT, each)
    reason = ErrorReason.ERROR_REASON_INTERNAL
    place.door.failures = [failure(grpc.StatusCode.INTERNAL, reason)]

    assert len(await place.swept(after_s=GRACE_S)) == 1
    assert len(await place.left()) == 1
    assert len(await place.swept(after_s=GRACE_S)) == 1


async def test_a_conversation_keeps_what_its_runs_have_told_of(place: Place) -> None:
    """Each of them can be forked."""
    made = new_conversation(TENANT, Conversation(context="contexts/c"))
    await place.conversations.create(made, None)
    identity = made.conversation_id
    first = await place.run("checkpoints/old", seat=Seat(identity, ""))
    second = await place.run(
        "checkpoints/new", "checkpoints/newer", seat=Seat(identity, first.run_id)
    )
    owner = owner_of(second.head)
    assert owner == owner_of(first.head) == f"conversations-{identity}"
    await place.owners.note(TENANT, owner)

    old, new = {"checkpoints/old"}, {"checkpoints/new", "checkpoints/newer"}
    assert await place.swept(after_s=GRACE_S) == [(owner, old | new, GRACE_S)]

    async with place.database.writing() as connection:
        await let_go_of_run(connection, TENANT, second.run_id)
    assert await place.swept() == [(owner, old, GRACE_S)]
    await place.conversations.delete(TENANT, identity)
    assert await place.swept() == [(owner, set(), 0)]

"""Conversations in both databases: who gets the next seat, and what is kept of what was taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.run_pb2 import Limits, Run, RunSpec

from common.database import Database
from common.errors import NotFoundError
from orchestrator import tables
from orchestrator.conversations.conversation import Seat, StoredConversation
from orchestrator.conversations.request import new_conversation
from orchestrator.conversations.store import ConversationStore, let_go_of_run
from orchestrator.errors import ConversationBusyError
from orchestrator.operations.audit_log import AuditLog
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.store import RunStore
from orchestrator.tables import MIGRATIONS


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url, MIGRATIONS)
    yield opened
    await opened.close()


async def opened(database: Database, tenant: str = "t") -> StoredConversation:
    made = new_conversation(tenant, Conversation(context="contexts/c", limits=Limits(tokens_max=9)))
    return await ConversationStore(database).create(made, None)


async def begin(database: Database, seat: Seat, tenant: str = "t") -> RunRecord:
    """Store a run that takes a seat."""
    record = RunRecord.queued(RunSpec(question="q"))
    return await RunStore(database).create(tenant, record, record.state_event(), None, seat)


async def end(database: Database, record: RunRecord, **usage: int) -> None:
    """End a run, with what it took."""
    progress = Run(state=Run.STATE_ANSWERED, sub_calls=2)
    progress.usage.CopyFrom(Usage(input_tokens=usage["tokens"], calls=1))
    change = (
        tables.runs.update()
        .where(tables.runs.c.run_id == record.run_id)
        .values(state=int(progress.state), progress=progress.SerializeToString())
    )
    async with database.writing() as connection:
        await connection.execute(change)


async def test_one_of_two_runs_gets_the_seat(database: Database) -> None:
    """Two requests that come at once must not both find the conversation free."""
    made = await opened(database)

    outcomes = await asyncio.gather(
        *(begin(database, made.seat()) for _ in range(4)), return_exceptions=True
    )

    assert sum(isinstance(each, RunRecord) for each in outcomes) == 1
    assert sum(isinstance(each, ConversationBusyError) for each in outcomes) == 3
    found = await ConversationStore(database).get("t", made.conversation_id)
    assert found.live_run
    assert len(await ConversationStore(database).run_ids("t", made.conversation_id, count=9)) == 1


async def test_a_seat_that_was_given_before_another_run_is_no_longer_good(
    database: Database,
) -> None:
    """What it leaves of the limits was reckoned without that run."""
    made = await opened(database)
    early = made.seat()
    await end(database, await begin(database, made.seat()), tokens=5)

    with pytest.raises(ConversationBusyError):
        await begin(database, early)


async def test_what_runs_took_adds_up(database: Database) -> None:
    made = await opened(database)
    store = ConversationStore(database)
    for tokens in (1, 2, 4):
        seat = (await store.get("t", made.conversation_id)).seat()
        await end(database, await begin(database, seat), tokens=tokens)

    found = await store.get("t", made.conversation_id)

    assert (found.usage.input_tokens, found.usage.calls, found.sub_calls) == (7, 3, 6)
    assert found.limits == Limits(tokens_max=9)


async def test_no_tenant_sees_anothers_conversation(database: Database) -> None:
    made = await opened(database)
    store = ConversationStore(database)

    with pytest.raises(NotFoundError):
        await store.get("other", made.conversation_id)
    with pytest.raises(NotFoundError):
        await store.delete("other", made.conversation_id)
    with pytest.raises(NotFoundError):
        await begin(database, made.seat(), tenant="other")
    assert await store.newest("other", before="", count=9) == []
    assert await store.run_ids("other", made.conversation_id, count=9) == []
    assert (await store.get("t", made.conversation_id)).newest_run_id == ""


async def test_a_deletion_is_in_the_audit_log_with_who_asked_for_it(database: Database) -> None:
    """In the transaction that deletes, also where time alone has."""
    asked, expired = await opened(database), await opened(database)
    store, audit = ConversationStore(database), AuditLog(database)
    await store.delete("t", asked.conversation_id, actor="ann")
    async with database.writing() as connection:
        await connection.execute(tables.conversations.update().values(used_us=0))
    await store.delete_expired("t", count=9)
    await store.delete_expired("t", count=9)

    entries = await audit.page(tenant="t", subject="", after=0, count=9)
    assert [(e.deed.action, e.deed.actor, e.deed.subject) for e in entries] == [
        ("conversation.deleted", "ann", asked.name),
        ("conversation.deleted", "", expired.name),
    ]


async def test_what_has_expired_is_deleted_and_the_rest_stays(database: Database) -> None:
    made, other = await opened(database), await opened(database)
    live = await opened(database)
    await begin(database, live.seat())
    long_ago = (
        tables.conversations.update()
        .where(tables.conversations.c.conversation_id != other.conversation_id)
        .values(used_us=0)
    )
    async with database.writing() as connection:
        await connection.execute(long_ago)
    store = ConversationStore(database)

    with pytest.raises(NotFoundError):
        await store.get("t", made.conversation_id)
    await store.delete_expired("t", count=9)

    found = await store.newest("t", before="", count=9)
    kept = {other.conversation_id, live.conversation_id}
    assert {each.conversation_id for each in found} == kept


async def test_what_a_deleted_run_took_stays_counted(database: Database) -> None:
    """Else retention would give a conversation its budget back."""
    made = await opened(database)
    store = ConversationStore(database)
    record = await begin(database, made.seat())
    await end(database, record, tokens=5)
    async with database.writing() as connection:
        await let_go_of_run(connection, "t", record.run_id)
        await connection.execute(
            tables.run_events.delete().where(tables.run_events.c.run_id == record.run_id)
        )
        await connection.execute(tables.runs.delete().where(tables.runs.c.run_id == record.run_id))
    found = await store.get("t", made.conversation_id)
    assert (found.usage.input_tokens, found.sub_calls, found.live_run) == (5, 2, "")
    assert await store.run_ids("t", made.conversation_id, count=9) == []
    following = await begin(database, found.seat())
    await end(database, following, tokens=3)
    found = await store.get("t", made.conversation_id)
    assert (found.usage.input_tokens, found.sub_calls) == (8, 4)

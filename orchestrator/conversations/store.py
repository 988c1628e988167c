"""Conversations in the database. What a run of one has left behind is in that run's own log."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.gateway.v1.generation_pb2 import Usage
from fathom.orchestrator.v1.run_pb2 import Limits, Run
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import NotFoundError, RequestIdReusedError
from orchestrator import tables
from orchestrator.conversations.conversation import Seat, StoredConversation
from orchestrator.errors import ConversationBusyError
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.runs.amounts import add_usage
from orchestrator.runs.sessions.checkpoint_owners import disown, look_at

_REQUEST_IDS_KEPT_US = 24 * 3_600_000_000
_conversations, _members = tables.conversations, tables.conversation_runs


@dataclasses.dataclass(frozen=True)
class ConversationRequest:
    """What makes a repeated CreateConversation the same request."""

    request_id: str
    """The caller's."""
    digest: bytes
    """Of the conversation as it came."""


class ConversationStore:
    """The conversations of every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = AuditLog(database)

    async def create(
        self, made: StoredConversation, request: ConversationRequest | None
    ) -> StoredConversation:
        """Store a conversation; return it, or the one that the same request made before. Raises
        RequestIdReusedError."""
        try:
            async with self._database.writing() as connection:
                if request is not None:
                    await connection.execute(_forget(made, request))
                await connection.execute(_conversations.insert().values(**_row(made, request)))
        except IntegrityError:
            earlier = await self._find(made.tenant, request) if request is not None else None
            if earlier is None:
                raise
            return earlier
        return made

    async def get(self, tenant: str, conversation_id: str) -> StoredConversation:
        """Return a conversation; raises NotFoundError, also for one that has expired."""
        query = _select(tenant).where(_conversations.c.conversation_id == conversation_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None or (found := _conversation(row)).is_expired(_now_us()):
            raise NotFoundError(f"conversations/{conversation_id}")
        return found

    async def newest(self, tenant: str, *, before: str, count: int) -> list[StoredConversation]:
        """Return conversations from the newest on, expired ones too; `before` is the id of the last
        one seen, or empty."""
        query = _select(tenant)
        if before:
            query = query.where(_conversations.c.conversation_id < before)
        query = query.order_by(_conversations.c.conversation_id.desc()).limit(count)
        async with self._database.reading() as connection:
            return [_conversation(row) for row in (await connection.execute(query)).mappings()]

    async def run_ids(
        self, tenant: str, conversation_id: str, *, before: str = "", count: int
    ) -> list[str]:
        """Return the ids of a conversation's runs from the newest on; those before `before`,
        where that is not empty."""
        query = select(_members.c.run_id).where(
            _members.c.tenant == tenant, _members.c.conversation_id == conversation_id
        )
        if before:
            query = query.where(_members.c.run_id < before)
        query = query.order_by(_members.c.run_id.desc()).limit(count)
        async with self._database.reading() as connection:
            return [run_id for (run_id,) in await connection.execute(query)]

    async def delete(self, tenant: str, conversation_id: str, *, actor: str = "") -> None:
        """Delete a conversation, and not its runs, with an audit entry. `actor` names the API key
        that asks for it. Raises ConversationBusyError and NotFoundError."""
        async with self._database.writing() as connection:
            found = await _locked(connection, tenant, conversation_id)
            if found.live_run:
                raise ConversationBusyError(found.name, found.live_run)
            await self._delete(connection, [found], actor=actor)

    async def delete_expired(self, tenant: str, *, count: int) -> None:
        """Delete a tenant's conversations that have expired, the oldest first, at most so many."""
        now_us = _now_us()
        query = _select(tenant).where(
            _conversations.c.used_us + _conversations.c.idle_ttl_us <= now_us
        )
        query = query.order_by(_conversations.c.conversation_id).limit(count)
        async with self._database.writing() as connection:
            found = [_conversation(row) for row in (await connection.execute(query)).mappings()]
            expired = [each for each in found if each.is_expired(now_us)]
            await self._delete(connection, expired, actor="")

    async def _delete(
        self, connection: AsyncConnection, found: Sequence[StoredConversation], *, actor: str
    ) -> None:
        if not found:
            return
        await _delete(connection, found)
        deeds = [
            Deed(tenant=each.tenant, actor=actor, action="conversation.deleted", subject=each.name)
            for each in found
        ]
        await self._audit.add_within(connection, deeds)

    async def _find(self, tenant: str, request: ConversationRequest) -> StoredConversation | None:
        query = _select(tenant).where(_conversations.c.request_id == request.request_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            return None
        if row["digest"] != request.digest:
            raise RequestIdReusedError(request.request_id)
        return _conversation(row)


async def take_seat(connection: AsyncConnection, tenant: str, seat: Seat, run_id: str) -> None:
    """Make a run the newest of its conversation, within the caller's transaction, which stores the
    run. Raises NotFoundError, and ConversationBusyError where another one was faster."""
    found = await _locked(connection, tenant, seat.conversation_id)
    if found.newest_run_id != seat.after_run_id or found.live_run:
        raise ConversationBusyError(found.name, found.live_run or f"runs/{found.newest_run_id}")
    await connection.execute(
        update(_conversations)
        .where(_is(tenant, seat.conversation_id))
        .values(
            newest_run_id=run_id,
            used_us=_now_us(),
            usage=found.usage.SerializeToString(),
            sub_calls=found.sub_calls,
        )
    )
    await connection.execute(
        _members.insert().values(tenant=tenant, conversation_id=seat.conversation_id, run_id=run_id)
    )


async def let_go_of_run(connection: AsyncConnection, tenant: str, run_id: str) -> None:
    """Have a conversation do without one of its runs, which the caller deletes in the same
    transaction: what the run took stays counted."""
    query = select(_members.c.conversation_id).where(
        _members.c.tenant == tenant, _members.c.run_id == run_id
    )
    conversation_id = (await connection.execute(query)).scalar()
    if conversation_id is None:
        return
    try:
        found = await _locked(connection, tenant, conversation_id)
    except NotFoundError:  # deleted just then
        return
    if found.newest_run_id == run_id:
        await connection.execute(
            update(_conversations)
            .where(_is(tenant, conversation_id))
            .values(
                newest_run_id=None,
                used_us=found.expires_us - found.idle_ttl_us,
                usage=found.usage.SerializeToString(),
                sub_calls=found.sub_calls,
            )
        )
    await connection.execute(
        delete(_members).where(_members.c.tenant == tenant, _members.c.run_id == run_id)
    )
    await look_at(connection, found.name)


async def count_late(
    connection: AsyncConnection, tenant: str, run: Run, usage: Usage, sub_calls: int
) -> None:
    """Count in a conversation what became known of one of its runs after that had ended, within
    the caller's transaction, which stores it in the run; nothing for a run of none."""
    conversation_id = run.spec.conversation.removeprefix("conversations/")
    if not conversation_id:
        return
    try:
        found = await _locked(connection, tenant, conversation_id)
    except NotFoundError:
        return
    if f"runs/{found.newest_run_id}" == run.name:
        return  # counted with the run, as long as it is the newest
    add_usage(found.past_usage, usage)
    await connection.execute(
        update(_conversations)
        .where(_is(tenant, conversation_id))
        .values(
            usage=found.past_usage.SerializeToString(),
            sub_calls=found.past_sub_calls + sub_calls,
        )
    )


async def _locked(
    connection: AsyncConnection, tenant: str, conversation_id: str
) -> StoredConversation:
    """Return a conversation that nobody else changes until the transaction ends."""
    condition = _is(tenant, conversation_id)
    held = update(_conversations).where(condition).values(used_us=_conversations.c.used_us)
    if not (await connection.execute(held)).rowcount:
        raise NotFoundError(f"conversations/{conversation_id}")
    query = _select(tenant).where(condition)
    return _conversation((await connection.execute(query)).mappings().one())


async def _delete(connection: AsyncConnection, found: Sequence[StoredConversation]) -> None:
    await disown(connection, *(each.name for each in found))
    for each in found:
        await connection.execute(
            delete(_members).where(
                _members.c.tenant == each.tenant,
                _members.c.conversation_id == each.conversation_id,
            )
        )
        await connection.execute(
            delete(_conversations).where(_is(each.tenant, each.conversation_id))
        )


def _is(tenant: str, conversation_id: str) -> Any:
    table = _conversations.c
    return (table.tenant == tenant) & (table.conversation_id == conversation_id)


def _select(tenant: str) -> Any:
    """Select a tenant's conversations, each with its newest run where that is kept."""
    runs = tables.runs
    newest = (runs.c.run_id == _conversations.c.newest_run_id) & (runs.c.tenant == tenant)
    joined = _conversations.outerjoin(runs, newest)
    columns = [*_conversations.c, runs.c.head.label("head"), runs.c.progress.label("progress")]
    return select(*columns).select_from(joined).where(_conversations.c.tenant == tenant)


def _conversation(row: Mapping[Any, Any]) -> StoredConversation:
    run: Run | None = None
    if row["head"] is not None:
        run = Run.FromString(row["head"])
        run.MergeFromString(row["progress"])
    return StoredConversation(
        tenant=row["tenant"],
        conversation_id=row["conversation_id"],
        context_id=row["context_id"],
        limits=Limits.FromString(row["limits"]),
        idle_ttl_us=row["idle_ttl_us"],
        created_us=row["created_us"],
        used_us=row["used_us"],
        newest_run=run,
        newest_run_id=row["newest_run_id"] or "",
        past_usage=Usage.FromString(row["usage"]),
        past_sub_calls=row["sub_calls"],
    )


def _row(made: StoredConversation, request: ConversationRequest | None) -> dict[str, Any]:
    usage = Usage()
    add_usage(usage, made.past_usage)
    return {
        "tenant": made.tenant,
        "conversation_id": made.conversation_id,
        "context_id": made.context_id,
        "limits": made.limits.SerializeToString(),
        "idle_ttl_us": made.idle_ttl_us,
        "created_us": made.created_us,
        "used_us": made.used_us,
        "newest_run_id": None,
        "usage": usage.SerializeToString(),
        "sub_calls": made.past_sub_calls,
        "request_id": request.request_id if request else None,
        "digest": request.digest if request else None,
    }


def _forget(made: StoredConversation, request: ConversationRequest) -> Any:
    """Free a request id that was remembered for long enough."""
    table = _conversations.c
    return (
        update(_conversations)
        .where(
            table.tenant == made.tenant,
            table.request_id == request.request_id,
            table.created_us < made.created_us - _REQUEST_IDS_KEPT_US,
        )
        .values(request_id=None, digest=None)
    )


def _now_us() -> int:
    return time.time_ns() // 1000

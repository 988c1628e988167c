"""Contexts and their documents in the database."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Select, Table, and_, delete, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import NotFoundError
from orchestrator import tables
from orchestrator.contexts.errors import ContextInUseError
from orchestrator.contexts.stored_blobs import release
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)
from orchestrator.operations.audit_log import AuditLog, Deed
from orchestrator.runs.log.record import TERMINAL_STATES

_ATTEMPTS = 5
_ROWS_AT_ONCE = 1_000


class ContextStore:
    """The contexts of every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audit = AuditLog(database)

    async def add(
        self, tenant: str, context: StoredContext, documents: Sequence[StoredDocument]
    ) -> tuple[StoredContext, bool]:
        """Store a context over a blob that another context of the tenant has; return the one
        stored, and whether it was there before. Raises NotFoundError where the blob is gone."""
        for _ in range(_ATTEMPTS):
            try:
                async with self._database.writing() as connection:
                    await only_one(connection, tenant, context.context_id)
                    await lock_context(connection, tenant, context.context_id)
                    if not await lock_blob(connection, context.blob_key):
                        raise NotFoundError(context.name)
                    return await insert_context(connection, tenant, context, documents)
            except IntegrityError:  # another one has stored the same just then
                continue
        raise AssertionError("a context was stored and deleted again and again")

    async def get(self, tenant: str, context_id: str) -> StoredContext:
        """Return a context; raises NotFoundError."""
        query = _of(tables.contexts, tenant).where(tables.contexts.c.context_id == context_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"contexts/{context_id}")
        return _context(row)

    async def delete(self, tenant: str, context_id: str, *, actor: str = "") -> str:
        """Delete a context and its documents, with an audit entry unless it was made for a child
        run; return the key of a blob that nothing refers to any more, or nothing. `actor` names
        the API key that asks for it. Raises NotFoundError or ContextInUseError."""
        table = tables.contexts
        async with self._database.writing() as connection:
            await only_one(connection, tenant, context_id)
            # First of all: it waits for a run that is just being stored, or makes that one wait.
            row = (
                await connection.execute(
                    delete(table)
                    .where(table.c.tenant == tenant, table.c.context_id == context_id)
                    .returning(table.c.blob_key, table.c.derived_from, table.c.words_bytes)
                )
            ).first()
            if row is None:
                raise NotFoundError(f"contexts/{context_id}")
            name = f"contexts/{context_id}"
            run_id = await connection.scalar(_unfinished_run(tenant, context_id))
            if run_id is not None:
                raise ContextInUseError(name, run=f"runs/{run_id}")
            user = await connection.scalar(_conversation(tenant, context_id))
            if user is not None:
                raise ContextInUseError(name, conversation=f"conversations/{user}")
            await connection.execute(
                delete(tables.documents).where(
                    tables.documents.c.tenant == tenant,
                    tables.documents.c.context_id == context_id,
                )
            )
            left = row.blob_key if await _let_go_of(connection, row.blob_key) else ""
            if row.words_bytes:
                await release(connection, tenant, row.words_bytes)
            if not row.derived_from:
                deed = Deed(tenant=tenant, actor=actor, action="context.deleted", subject=name)
                await self._audit.add_within(connection, [deed])
            return left

    async def mark_derived(self, tenant: str, context_id: str) -> None:
        """Note that a context was made for a child run, so that it is in no list."""
        table = tables.contexts
        change = update(table).where(
            table.c.tenant == tenant, table.c.context_id == context_id, table.c.derived_from == ""
        )
        async with self._database.writing() as connection:
            await connection.execute(change.values(derived_from=context_id))

    async def expired(self, *, count: int) -> list[tuple[str, str]]:
        """Return tenant and id of unused contexts whose time is over, the oldest first."""
        table = tables.contexts.c
        query = (
            select(table.tenant, table.context_id)
            .where(
                table.expires_us <= time.time_ns() // 1000,
                ~_unfinished_run(table.tenant, table.context_id).exists(),
                ~_conversation(table.tenant, table.context_id).exists(),
            )
            .order_by(table.expires_us)
            .limit(count)
        )
        async with self._database.reading() as connection:
            return [(row.tenant, row.context_id) for row in await connection.execute(query)]

    async def newest(
        self, tenant: str, *, before: tuple[int, str] | None, count: int
    ) -> list[StoredContext]:
        """Return contexts from the newest on, none that was made for a child run; `before` is the
        time and id of the last one seen."""
        table = tables.contexts.c
        query = _of(tables.contexts, tenant).where(table.derived_from == "")
        if before is not None:
            created_us, context_id = before
            query = query.where(
                or_(
                    table.created_us < created_us,
                    and_(table.created_us == created_us, table.context_id < context_id),
                )
            )
        query = query.order_by(table.created_us.desc(), table.context_id.desc()).limit(count)
        async with self._database.reading() as connection:
            return [_context(row) for row in (await connection.execute(query)).mappings()]

    async def documents(
        self,
        tenant: str,
        context_id: str,
        *,
        first: int = 0,
        count: int | None = None,
        names: Collection[str] | None = None,
    ) -> list[StoredDocument]:
        """Return documents in the order of upload, from position `first` on; those of `names`
        alone, where they are given."""
        table = tables.documents.c
        query = (
            _of(tables.documents, tenant)
            .where(table.context_id == context_id, table.position >= first)
            .order_by(table.position)
            .limit(count)
        )
        if names is not None:
            query = query.where(table.name.in_(names))
        async with self._database.reading() as connection:
            return [_document(row) for row in (await connection.execute(query)).mappings()]


async def hold_context(connection: AsyncConnection, tenant: str, context_id: str) -> None:
    """Keep a context from being deleted until the transaction ends, in which the caller stores
    that it uses it; raises NotFoundError."""
    if not await lock_context(connection, tenant, context_id):
        raise NotFoundError(f"contexts/{context_id}")


async def only_one(connection: AsyncConnection, tenant: str, context_id: str) -> None:
    """Have transactions that store or delete a context take turns, also while there is none to
    lock: who has its blob and would insert it waits for who deletes it, who waits for the blob."""
    if connection.dialect.name == "postgresql":
        lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
        await connection.execute(lock, {"key": f"{tenant}/{context_id}"})


async def lock_context(connection: AsyncConnection, tenant: str, context_id: str) -> bool:
    """Keep a context as it is until the transaction ends; tell whether it is there."""
    table = tables.contexts
    locked = await connection.execute(
        update(table)
        .where(table.c.tenant == tenant, table.c.context_id == context_id)
        .values(created_us=table.c.created_us)
    )
    return bool(locked.rowcount)


async def lock_blob(connection: AsyncConnection, blob_key: str) -> bool:
    """Keep a blob from being removed until the transaction ends; tell whether it is there."""
    table = tables.blobs
    locked = await connection.execute(
        update(table)
        .where(table.c.blob_key == blob_key, table.c.removed_us.is_(None))
        .values(size_bytes=table.c.size_bytes)
    )
    return bool(locked.rowcount)


async def insert_context(
    connection: AsyncConnection,
    tenant: str,
    context: StoredContext,
    documents: Sequence[StoredDocument],
) -> tuple[StoredContext, bool]:
    """Store a context, whose blob is locked; return the one stored, and whether it was there.

    One that was there lives for the longer of the two times. Raises IntegrityError where another
    transaction stores the same.
    """
    table = tables.contexts
    which = (table.c.tenant == tenant, table.c.context_id == context.context_id)
    row = (await connection.execute(select(table).where(*which))).mappings().first()
    if row is not None:
        there = _context(row)
        expires_us = _later(there.expires_us, context.expires_us)
        await connection.execute(update(table).where(*which).values(expires_us=expires_us))
        return dataclasses.replace(there, expires_us=expires_us), True
    await connection.execute(table.insert().values(tenant=tenant, **_context_row(context)))
    for first in range(0, len(documents), _ROWS_AT_ONCE):
        await connection.execute(
            tables.documents.insert(),
            [
                {
                    "tenant": tenant,
                    "context_id": context.context_id,
                    "position": position,
                    **dataclasses.asdict(document),
                }
                for position, document in enumerate(
                    documents[first : first + _ROWS_AT_ONCE], start=first
                )
            ],
        )
    return context, False


def _later(one_us: int | None, other_us: int | None) -> int | None:
    return None if one_us is None or other_us is None else max(one_us, other_us)


def _unfinished_run(tenant: str | Column[str], context_id: str | Column[str]) -> Select[tuple[str]]:
    table = tables.runs.c
    return (
        select(table.run_id)
        .where(
            table.tenant == tenant,
            table.context_id == context_id,
            table.state.not_in(TERMINAL_STATES),
        )
        .limit(1)
    )


def _conversation(tenant: str | Column[str], context_id: str | Column[str]) -> Select[tuple[str]]:
    table = tables.conversations.c
    return (
        select(table.conversation_id)
        .where(table.tenant == tenant, table.context_id == context_id)
        .limit(1)
    )


async def _let_go_of(connection: AsyncConnection, blob_key: str) -> bool:
    """Mark a blob as one to remove unless a context has it; tell whether it was marked."""
    if not await lock_blob(connection, blob_key):
        return False
    table = tables.contexts.c
    if await connection.scalar(select(table.tenant).where(table.blob_key == blob_key).limit(1)):
        return False
    await connection.execute(
        update(tables.blobs)
        .where(tables.blobs.c.blob_key == blob_key)
        .values(removed_us=time.time_ns() // 1000)
    )
    return True


def _of(table: Table, tenant: str) -> Select[Any]:
    return select(table).where(table.c.tenant == tenant)


_SHAPE_COLUMNS = tuple(field.name for field in dataclasses.fields(TextShape))
_DOCUMENT_COLUMNS = tuple(field.name for field in dataclasses.fields(StoredDocument))


def _context_row(context: StoredContext) -> dict[str, Any]:
    row: dict[str, Any] = dataclasses.asdict(context)
    shape: dict[str, Any] = row.pop("shape")
    return row | shape | {"kind": context.kind.value}


def _context(row: Mapping[Any, Any]) -> StoredContext:
    values = {str(key): value for key, value in row.items()}
    del values["tenant"]
    shape = TextShape(**{column: values.pop(column) for column in _SHAPE_COLUMNS})
    return StoredContext(**values | {"kind": ContextKind(values["kind"]), "shape": shape})


def _document(row: Mapping[Any, Any]) -> StoredDocument:
    return StoredDocument(**{column: row[column] for column in _DOCUMENT_COLUMNS})

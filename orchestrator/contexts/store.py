"""Contexts and their documents in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, Table, and_, or_, select
from sqlalchemy.exc import IntegrityError

from common.database import Database
from common.errors import NotFoundError
from orchestrator import tables
from orchestrator.contexts.stored_context import (
    ContextKind,
    StoredContext,
    StoredDocument,
    TextShape,
)


class ContextStore:
    """The contexts of every tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, tenant: str, context: StoredContext, documents: Sequence[StoredDocument]
    ) -> tuple[StoredContext, bool]:
        """Store a context; return the one stored, and whether it was there before."""
        try:
            async with self._database.writing() as connection:
                await connection.execute(
                    tables.contexts.insert().values(tenant=tenant, **_context_row(context))
                )
                if documents:
                    await connection.execute(
                        tables.documents.insert(),
                        [
                            {
                                "tenant": tenant,
                                "context_id": context.context_id,
                                "position": position,
                                **dataclasses.asdict(document),
                            }
                            for position, document in enumerate(documents)
                        ],
                    )
        except IntegrityError:
            return await self.get(tenant, context.context_id), True
        return context, False

    async def get(self, tenant: str, context_id: str) -> StoredContext:
        """Return a context; raises NotFoundError."""
        query = _of(tables.contexts, tenant).where(tables.contexts.c.context_id == context_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"contexts/{context_id}")
        return _context(row)

    async def newest(
        self, tenant: str, *, before: tuple[int, str] | None, count: int
    ) -> list[StoredContext]:
        """Return contexts from the newest on; `before` is the time and id of the last one seen."""
        table = tables.contexts.c
        query = _of(tables.contexts, tenant)
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
        self, tenant: str, context_id: str, *, first: int = 0, count: int | None = None
    ) -> list[StoredDocument]:
        """Return documents in the order of upload, from position `first` on."""
        table = tables.documents.c
        query = (
            _of(tables.documents, tenant)
            .where(table.context_id == context_id, table.position >= first)
            .order_by(table.position)
            .limit(count)
        )
        async with self._database.reading() as connection:
            return [_document(row) for row in (await connection.execute(query)).mappings()]


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

"""Blobs in the database: which bytes a tenant has, which are to go, and how much counts as stored
by it, what its uploads have reserved included. The bytes themselves are `orchestrator/blobs.py`'s.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from orchestrator import tables
from orchestrator.contexts.errors import StorageQuotaError
from orchestrator.contexts.stored_context import StoredContext


class StoredBlobs:
    """The blobs of every tenant."""

    def __init__(self, database: Database, *, tenant_bytes_max: int) -> None:
        """Hold each tenant to a number of bytes, 0 for no bound."""
        self._database = database
        self._tenant_bytes_max = tenant_bytes_max

    async def removed(self, *, count: int) -> list[str]:
        """Return keys of blobs that are to be removed from the object store."""
        table = tables.blobs.c
        query = select(table.blob_key).where(table.removed_us.is_not(None))
        query = query.order_by(table.removed_us).limit(count)
        async with self._database.reading() as connection:
            return list((await connection.scalars(query)).all())

    async def forget(self, blob_key: str) -> None:
        """Forget a blob that is removed from the object store: it no longer counts as stored."""
        table = tables.blobs
        async with self._database.writing() as connection:
            row = (
                await connection.execute(
                    delete(table)
                    .where(table.c.blob_key == blob_key, table.c.removed_us.is_not(None))
                    .returning(table.c.tenant, table.c.size_bytes)
                )
            ).first()
            if row is not None:
                await release(connection, row.tenant, row.size_bytes)

    async def settle(
        self,
        connection: AsyncConnection,
        tenant: str,
        context: StoredContext,
        *,
        reserved_bytes: int,
    ) -> str:
        """Return the key of the blob that a new context is to use, which is locked and counted as
        stored in the place of what was reserved: one of the tenant's with the same bytes, and then
        the context's own is marked as to be removed. Raises StorageQuotaError.
        """
        table = tables.blobs
        there = (
            await connection.execute(
                update(table)
                .where(
                    table.c.tenant == tenant,
                    table.c.blake3 == context.blake3,
                    table.c.removed_us.is_(None),
                )
                .values(size_bytes=table.c.size_bytes)
                .returning(table.c.blob_key)
            )
        ).first()
        if there is not None:
            await release(connection, tenant, reserved_bytes)
            await mark_removed(connection, tenant, context.blob_key)
            blob_key: str = there.blob_key
            return blob_key
        await self.reserve(connection, tenant, context.size_bytes - reserved_bytes)
        await connection.execute(
            table.insert().values(
                blob_key=context.blob_key,
                tenant=tenant,
                blake3=context.blake3,
                size_bytes=context.size_bytes,
            )
        )
        return context.blob_key

    async def reserve(self, connection: AsyncConnection, tenant: str, more_bytes: int) -> None:
        """Count bytes as stored, fewer where negative; the tenant's row is locked by it. Raises
        StorageQuotaError."""
        table = tables.storage_use
        await connection.execute(_first_use(connection, tenant))
        query = update(table).where(table.c.tenant == tenant)
        if self._tenant_bytes_max and more_bytes > 0:
            query = query.where(table.c.size_bytes + more_bytes <= self._tenant_bytes_max)
        changed = await connection.execute(query.values(size_bytes=table.c.size_bytes + more_bytes))
        if not changed.rowcount:
            spent = await connection.scalar(
                select(table.c.size_bytes).where(table.c.tenant == tenant)
            )
            raise StorageQuotaError(self._tenant_bytes_max, spent or 0)


async def release(connection: AsyncConnection, tenant: str, size_bytes: int) -> None:
    """Count bytes as stored no more."""
    table = tables.storage_use
    await connection.execute(
        update(table)
        .where(table.c.tenant == tenant)
        .values(size_bytes=table.c.size_bytes - size_bytes)
    )


async def mark_removed(connection: AsyncConnection, tenant: str, blob_key: str) -> None:
    """Note bytes that no context has as to be removed."""
    await connection.execute(
        tables.blobs.insert().values(
            blob_key=blob_key,
            tenant=tenant,
            blake3="",
            size_bytes=0,
            removed_us=time.time_ns() // 1000,
        )
    )


def _first_use(connection: AsyncConnection, tenant: str) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return (
        dialect.insert(tables.storage_use)
        .values(tenant=tenant, size_bytes=0)
        .on_conflict_do_nothing()
    )

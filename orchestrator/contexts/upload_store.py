"""Uploads under way in the database: what is kept of each, and who writes it.

A blob is written under a key of its own, which a row here or in `blobs` names before the first byte
and after the last: whatever dies, no byte is stored that nothing knows of.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from common.errors import NotFoundError, RequestIdReusedError
from orchestrator import tables
from orchestrator.contexts.errors import UploadsTooManyError, UploadSupersededError
from orchestrator.contexts.store import insert_context, lock_context, only_one
from orchestrator.contexts.stored_blobs import StoredBlobs, mark_removed, release
from orchestrator.contexts.stored_context import StoredContext, StoredDocument
from orchestrator.contexts.upload import BegunDocument
from orchestrator.contexts.upload_plan import UploadPlan

_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadRecord:
    """An upload as it is stored."""

    tenant: str
    """Whose it is."""
    upload_id: str
    """A UUID."""
    blob_key: str
    """Where its bytes are written."""
    epoch: int
    """How often a stream has gone on with it."""
    kept_bytes: int
    """Bytes that outlast a crash."""
    reserved_bytes: int
    """What of it counts as stored."""
    context_id: str | None
    """Its context, once it has ended."""


class UploadStore:
    """The uploads of every tenant."""

    def __init__(self, database: Database, stored: StoredBlobs, *, unfinished_max: int) -> None:
        """Hold each tenant to a number of unfinished uploads."""
        self._database = database
        self._stored = stored
        self._unfinished_max = unfinished_max

    async def begin(
        self, tenant: str, upload_id: str, blob_key: str, plan: UploadPlan
    ) -> UploadRecord:
        """Store a new upload, or go on with the one of this id: earlier streams can no longer.

        Raises RequestIdReusedError, StorageQuotaError or UploadsTooManyError.
        """
        for _ in range(_ATTEMPTS):
            try:
                async with self._database.writing() as connection:
                    return await self._begin(connection, tenant, upload_id, blob_key, plan)
            except IntegrityError:  # another one has begun the same just then
                continue
        raise AssertionError("an upload was begun and dropped again and again")

    async def get(self, tenant: str, upload_id: str) -> UploadRecord:
        """Return an upload; raises NotFoundError."""
        async with self._database.reading() as connection:
            row = await _row(connection, tenant, upload_id)
        if row is None:
            raise NotFoundError(f"upload {upload_id}")
        return _record(row)

    async def documents(self, upload: UploadRecord) -> list[BegunDocument]:
        """Return the documents that are kept as begun, in order."""
        table = tables.upload_documents.c
        query = (
            select(table.name, table.offset_bytes, table.metadata)
            .where(table.tenant == upload.tenant, table.upload_id == upload.upload_id)
            .order_by(table.position)
        )
        async with self._database.reading() as connection:
            return [BegunDocument(*row) for row in await connection.execute(query)]

    async def reserve(self, upload: UploadRecord, more_bytes: int) -> UploadRecord:
        """Count more bytes as stored; raises StorageQuotaError or UploadSupersededError."""
        reserved = upload.reserved_bytes + more_bytes
        async with self._database.writing() as connection:
            await _change(connection, upload, reserved_bytes=reserved)
            await self._stored.reserve(connection, upload.tenant, more_bytes)
        return dataclasses.replace(upload, reserved_bytes=reserved)

    async def keep(
        self, upload: UploadRecord, kept_bytes: int, first: int, begun: Sequence[BegunDocument]
    ) -> None:
        """Note what is kept: so many bytes, and the documents begun from number `first` on.

        Raises UploadSupersededError.
        """
        async with self._database.writing() as connection:
            await _change(connection, upload, kept_bytes=kept_bytes)
            if begun:
                rows = [
                    {
                        "tenant": upload.tenant,
                        "upload_id": upload.upload_id,
                        "position": position,
                        **dataclasses.asdict(document),
                    }
                    for position, document in enumerate(begun, start=first)
                ]
                await connection.execute(tables.upload_documents.insert(), rows)

    async def restart(self, upload: UploadRecord) -> None:
        """Note that nothing is kept, the bytes being gone; raises UploadSupersededError."""
        async with self._database.writing() as connection:
            await _change(connection, upload, kept_bytes=0)
            await _forget_documents(connection, upload)

    async def finish(
        self,
        upload: UploadRecord,
        context: StoredContext,
        documents: Sequence[StoredDocument],
        *,
        is_named: bool,
    ) -> tuple[StoredContext, bool]:
        """Store an upload's context; return the one stored, and whether it was there before.

        Where the tenant has the same bytes, theirs is its blob, and the upload's own is to be
        removed. A named upload is remembered. Raises UploadSupersededError or StorageQuotaError.
        """
        for _ in range(_ATTEMPTS):
            try:
                async with self._database.writing() as connection:
                    # Rows are locked in one order everywhere, or transactions would wait for each
                    # other: uploads, contexts, blobs, storage_use.
                    if is_named:
                        ended = {"context_id": context.context_id, "reserved_bytes": 0}
                        await _change(connection, upload, **ended)
                    else:
                        await connection.execute(_deletion(upload))
                    await _forget_documents(connection, upload)
                    await only_one(connection, upload.tenant, context.context_id)
                    was_there = await lock_context(connection, upload.tenant, context.context_id)
                    blob_key = await self._stored.settle(
                        connection, upload.tenant, context, reserved_bytes=upload.reserved_bytes
                    )
                    if not was_there:
                        await self._stored.reserve(connection, upload.tenant, context.words_bytes)
                    return await insert_context(
                        connection,
                        upload.tenant,
                        dataclasses.replace(context, blob_key=blob_key),
                        documents,
                    )
            except IntegrityError:  # another transaction has stored the same just then
                continue
        raise AssertionError("the same bytes were stored and deleted again and again")

    async def drop(self, upload: UploadRecord) -> bool:
        """Forget an upload, and mark its bytes as to be removed; tells whether there were any.
        Does nothing where another stream has gone on with it."""
        async with self._database.writing() as connection:
            dropped = await connection.execute(_deletion(upload))
            if not dropped.rowcount:
                return False
            await _forget_documents(connection, upload)
            if upload.context_id is None:
                await release(connection, upload.tenant, upload.reserved_bytes)
                await mark_removed(connection, upload.tenant, upload.blob_key)
        return upload.context_id is None

    async def left_alone(self, *, before_us: int, count: int) -> list[UploadRecord]:
        """Return uploads that nothing was heard of since a time, ended ones too."""
        table = tables.uploads
        query = select(table).where(table.c.updated_us < before_us)
        query = query.order_by(table.c.updated_us).limit(count)
        async with self._database.reading() as connection:
            return [_record(row) for row in await connection.execute(query)]

    async def _begin(
        self,
        connection: AsyncConnection,
        tenant: str,
        upload_id: str,
        blob_key: str,
        plan: UploadPlan,
    ) -> UploadRecord:
        table = tables.uploads
        row = await _row(connection, tenant, upload_id)
        if row is None:
            await self._check_room(connection, tenant)
            reserved = plan.size_bytes or 0
            await self._stored.reserve(connection, tenant, reserved)
            values = {
                "blob_key": blob_key,
                "plan": plan.to_json(),
                "epoch": 0,
                "kept_bytes": 0,
                "reserved_bytes": reserved,
                "updated_us": _now_us(),
            }
            await connection.execute(
                table.insert().values(tenant=tenant, upload_id=upload_id, **values)
            )
        elif row.plan != plan.to_json():
            raise RequestIdReusedError(upload_id)
        else:
            values = {"epoch": table.c.epoch + 1, "updated_us": _now_us()}
            await connection.execute(update(table).where(*_is(tenant, upload_id)).values(values))
        row = await _row(connection, tenant, upload_id)
        if row is None:  # dropped just then
            raise UploadSupersededError(upload_id)
        return _record(row)

    async def _check_room(self, connection: AsyncConnection, tenant: str) -> None:
        table = tables.uploads.c
        query = select(func.count()).where(table.tenant == tenant, table.context_id.is_(None))
        if (await connection.scalar(query) or 0) >= self._unfinished_max:
            raise UploadsTooManyError(self._unfinished_max)


async def _change(connection: AsyncConnection, upload: UploadRecord, **values: Any) -> None:
    """Change an upload's row, unless another stream has gone on with it."""
    changed = await connection.execute(
        update(tables.uploads)
        .where(*_is(upload.tenant, upload.upload_id), tables.uploads.c.epoch == upload.epoch)
        .values(updated_us=_now_us(), **values)
    )
    if not changed.rowcount:
        raise UploadSupersededError(upload.upload_id)


async def _forget_documents(connection: AsyncConnection, upload: UploadRecord) -> None:
    table = tables.upload_documents
    await connection.execute(
        delete(table).where(table.c.tenant == upload.tenant, table.c.upload_id == upload.upload_id)
    )


async def _row(connection: AsyncConnection, tenant: str, upload_id: str) -> Row[Any] | None:
    query = select(tables.uploads).where(*_is(tenant, upload_id))
    return (await connection.execute(query)).first()


def _is(tenant: str, upload_id: str) -> tuple[Any, ...]:
    table = tables.uploads.c
    return table.tenant == tenant, table.upload_id == upload_id


def _deletion(upload: UploadRecord) -> Any:
    return delete(tables.uploads).where(
        *_is(upload.tenant, upload.upload_id), tables.uploads.c.epoch == upload.epoch
    )


def _record(row: Row[Any]) -> UploadRecord:
    names = [field.name for field in dataclasses.fields(UploadRecord)]
    return UploadRecord(**{name: getattr(row, name) for name in names})


def _now_us() -> int:
    return time.time_ns() // 1000

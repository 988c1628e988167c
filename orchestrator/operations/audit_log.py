"""The audit log: what was done, by whom, each entry with the digest of the one before it.

It only grows. It does not know what is worth an entry, and keeps no content: a digest of a run's
events stands for them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from blake3 import blake3
from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from orchestrator import tables

FIRST_PREVIOUS = "0" * 64
"""What the first entry has in place of a digest."""
_CHAIN_LOCK = 0x66617468_61756474
"""Key of PostgreSQL's advisory lock: one transaction at a time makes the chain longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deed:
    """Something that was done."""

    tenant: str
    """Whose."""
    actor: str
    """Name of the API key that asked for it; empty for what the service does by itself."""
    action: str
    """What, such as `run.ended`."""
    subject: str
    """What it was done to, such as `runs/{run}`."""
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More of it, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """A deed in the log."""

    sequence: int
    """1 for the first, without gaps."""
    entered_us: int
    """When, in microseconds of Unix time."""
    deed: Deed
    """What was done."""
    previous_blake3: str
    """Digest of the entry before, hexadecimal."""
    blake3: str
    """Digest of all of the above, hexadecimal."""

    def digest(self) -> str:
        """Return what `blake3` must be."""
        content = dataclasses.asdict(self.deed) | {
            "sequence": self.sequence,
            "entered_us": self.entered_us,
        }
        data = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        return blake3(self.previous_blake3.encode() + data).hexdigest()


class AuditLog:
    """The log of one service, whatever the number of its processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_within(self, connection: AsyncConnection, deeds: Sequence[Deed]) -> None:
        """Add entries in the transaction that does what they tell of. It holds up other writers of
        the log until it ends, so this comes last in it."""
        if connection.dialect.name == "postgresql":
            lock = text("SELECT pg_advisory_xact_lock(:key)")
            await connection.execute(lock, {"key": _CHAIN_LOCK})
        table = tables.audit_log
        newest = select(table.c.sequence, table.c.blake3).order_by(table.c.sequence.desc()).limit(1)
        tip = (await connection.execute(newest)).first()
        sequence, previous = tip or (0, FIRST_PREVIOUS)
        now_us = time.time_ns() // 1000
        rows = []
        for deed in deeds:
            sequence += 1
            entry = AuditEntry(
                sequence=sequence,
                entered_us=now_us,
                deed=deed,
                previous_blake3=previous,
                blake3="",
            )
            previous = entry.digest()
            rows.append(_row(dataclasses.replace(entry, blake3=previous)))
        if rows:
            await connection.execute(table.insert(), rows)

    async def page(
        self, *, tenant: str | None, subject: str, after: int, count: int
    ) -> list[AuditEntry]:
        """Return entries after a sequence, oldest first: of one tenant, or of all where None, and
        done to one subject where that is not empty."""
        table = tables.audit_log
        query = select(table).where(table.c.sequence > after)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        if subject:
            query = query.where(table.c.subject == subject)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(table.c.sequence).limit(count))
            return [_entry(row) for row in rows]


def chain_problem(before: AuditEntry | None, entry: AuditEntry) -> str:
    """Return why an entry does not follow the one before it; empty where it does."""
    sequence = before.sequence + 1 if before else 1
    if entry.sequence != sequence:
        return f"entry {sequence} is missing"
    if entry.previous_blake3 != (before.blake3 if before else FIRST_PREVIOUS):
        return "it does not follow the entry before it"
    try:
        is_whole = entry.blake3 == entry.digest()
    except TypeError:  # a value of a kind that no writer of this log stores
        is_whole = False
    return "" if is_whole else "it was changed"


def _row(entry: AuditEntry) -> dict[str, Any]:
    deed = entry.deed
    return {
        "sequence": entry.sequence,
        "entered_us": entry.entered_us,
        "tenant": deed.tenant,
        "actor": deed.actor,
        "action": deed.action,
        "subject": deed.subject,
        "details": orjson.dumps(dict(deed.details), option=orjson.OPT_SORT_KEYS).decode(),
        "previous_blake3": entry.previous_blake3,
        "blake3": entry.blake3,
    }


def _entry(row: Row[Any]) -> AuditEntry:
    deed = Deed(
        tenant=row.tenant,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        details=_details(row.details),
    )
    return AuditEntry(
        sequence=row.sequence,
        entered_us=row.entered_us,
        deed=deed,
        previous_blake3=row.previous_blake3,
        blake3=row.blake3,
    )


def _details(stored: str) -> dict[str, str]:
    """Return the details in a row; what was written past this log is shown as it is, and does not
    fit the digest."""
    try:
        details = orjson.loads(stored)
    except orjson.JSONDecodeError:
        details = None
    if isinstance(details, dict) and all(isinstance(each, str) for each in details.values()):
        return details
    return {"unreadable": str(stored)}

"""Whose checkpoints there are in the object store: noted before the first byte is stored, until the
last one is deleted. A run has its own; those of a conversation's runs are the conversation's.

The checkpoints themselves are the sandbox service's; `operations/checkpoint_sweep.py` has what is
not needed deleted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from fathom.orchestrator.v1.run_pb2 import Run
from sqlalchemy import delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database
from orchestrator import tables

GRACE_S = 3600.0
"""How long after its beginning a checkpoint is taken for one that may still be stored or told of;
many times what the call may take."""
_owners = tables.checkpoint_owners


class CheckpointBooks(Protocol):
    """Where it is noted that a checkpoint is about to be stored."""

    async def note(self, tenant: str, owner: str) -> None:
        """Note it; raises DatabaseAwayError, and then nothing may be stored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DueOwner:
    """An owner whose checkpoints are to be looked at."""

    owner: str
    """As `owner_of` has it."""
    tenant: str
    """Whose it is."""
    due_us: int
    """Since when."""
    removed_us: int | None
    """When it was deleted; None where it has not been."""

    @property
    def name(self) -> str:
        """`runs/{run}` or `conversations/{conversation}`."""
        return self.owner.replace("-", "/", 1)


class CheckpointOwners:
    """The owners of checkpoints, of every tenant."""

    def __init__(
        self, database: Database, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        self._database = database
        self.now_us = now_us
        """The time, in microseconds of Unix time."""

    async def note(self, tenant: str, owner: str) -> None:
        """Note that a checkpoint is about to be stored: it is looked at some time later, whatever
        becomes of it. Raises DatabaseAwayError."""
        due_us = self.now_us() + int(GRACE_S * 1e6)
        async with self._database.writing() as connection:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            row = dialect.insert(_owners).values(owner=owner, tenant=tenant, due_us=due_us)
            await connection.execute(
                row.on_conflict_do_update(index_elements=["owner"], set_={"due_us": due_us})
            )

    async def due(self, *, count: int) -> list[DueOwner]:
        """Return owners to look at, those first that have waited the longest."""
        table = _owners.c
        query = select(_owners).where(table.due_us <= self.now_us()).order_by(table.due_us)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.limit(count))).mappings()
            return [DueOwner(**row) for row in rows]

    async def look_again(self, seen: DueOwner, *, at_us: int | None) -> None:
        """Have an owner looked at later, or no more until it stores another one; does nothing where
        that has happened since it was seen."""
        async with self._database.writing() as connection:
            await connection.execute(update(_owners).where(_is(seen)).values(due_us=at_us))

    async def forget(self, seen: DueOwner) -> None:
        """Forget an owner whose checkpoints are all deleted, unless it has stored another one."""
        async with self._database.writing() as connection:
            await connection.execute(delete(_owners).where(_is(seen)))


def owner_of(run: Run) -> str:
    """Return the owner of a run's checkpoints: its conversation where it has one."""
    return _owner(run.spec.conversation or run.name)


async def disown(connection: AsyncConnection, *names: str) -> None:
    """Have the checkpoints of runs and conversations deleted, which the caller deletes in the same
    transaction."""
    now_us = time.time_ns() // 1000
    await connection.execute(
        update(_owners)
        .where(_owners.c.owner.in_([_owner(name) for name in names]))
        .values(removed_us=now_us, due_us=now_us)
    )


async def look_at(connection: AsyncConnection, name: str) -> None:
    """Have the checkpoints of a conversation looked at, which does without one of its runs from
    this transaction on."""
    now_us = time.time_ns() // 1000
    waits = or_(_owners.c.due_us.is_(None), _owners.c.due_us > now_us)
    await connection.execute(
        update(_owners).where(_owners.c.owner == _owner(name), waits).values(due_us=now_us)
    )


def _owner(name: str) -> str:
    return name.replace("/", "-", 1)


def _is(seen: DueOwner) -> Any:
    table = _owners.c
    removed = table.removed_us.is_(None) if seen.removed_us is None else True
    return (table.owner == seen.owner) & (table.due_us == seen.due_us) & removed

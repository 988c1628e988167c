"""The migrations make the tables that the code is written against."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from common.database import Database
from orchestrator import tables
from orchestrator.tables import MIGRATIONS


def differences(connection: Connection) -> list[object]:
    options = {"version_table": "orchestrator_version", "compare_type": True}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, tables.metadata))


async def test_migrations_and_tables_agree(tmp_path: Path) -> None:
    """A column in one and not in the other fails in the middle of a run."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/runs.sqlite", MIGRATIONS)
    async with database.reading() as connection:
        found = await connection.run_sync(differences)
    await database.close()

    assert found == []


def test_the_tables_can_be_made_on_postgresql() -> None:
    """The same code is to run on both."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in tables.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialect))

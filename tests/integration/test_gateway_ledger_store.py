"""The ledger's tables on real databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, literal, select
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from common.config import ConfigError
from common.database import Database, DatabaseThread
from llm_gateway.ledger import tables
from llm_gateway.ledger.operations import LookUp, StoreUnavailableError
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.tables import MIGRATIONS
from tests.support.call_store_contract import KEY, CallStoreContract, opening
from tests.support.postgres import PostgresServer


class TestSqlCallStore(CallStoreContract):
    """In SQLite and in PostgreSQL."""

    @pytest.fixture
    async def store(self, database_url: str) -> AsyncIterator[SqlCallStore]:
        database = await Database.open(database_url, MIGRATIONS)
        await database.close()
        thread = DatabaseThread.open(database_url)
        yield SqlCallStore(thread)
        await thread.close()


async def test_migrations_and_tables_agree(database_url: str) -> None:
    """A column in one and not in the other fails with the first call."""

    def differences(connection: Connection) -> list[object]:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, tables.metadata))

    database = await Database.open(database_url, MIGRATIONS)
    async with database.reading() as connection:
        found = await connection.run_sync(differences)
    await database.close()

    assert found == []


async def test_gateways_that_start_together_migrate_once(database_url: str) -> None:
    databases = await asyncio.gather(*(Database.open(database_url, MIGRATIONS) for _ in range(4)))

    await asyncio.gather(*(database.close() for database in databases))


async def test_a_statement_that_the_driver_refuses_fails_like_any_other(database_url: str) -> None:
    """Stores know one kind of error, whoever ran the statement, and the next transaction works."""
    thread = DatabaseThread.open(database_url)

    def refused(connection: Connection) -> None:
        connection.connection.cursor().execute("SELECT * FROM nowhere")

    with pytest.raises(DBAPIError) as caught:
        await thread.transact(refused)
    works = await thread.transact(lambda connection: connection.scalar(select(literal(1))))
    await thread.close()

    assert isinstance(caught.value, OperationalError | ProgrammingError)
    assert works == 1


async def test_a_new_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds answers."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/g.sqlite", MIGRATIONS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    await database.close()

    assert modes["g.sqlite"] == 0o600
    assert set(modes.values()) == {0o600}


async def test_a_server_that_is_away_is_told_and_found_again() -> None:
    """The gateway must refuse calls meanwhile, and go on by itself."""
    with PostgresServer() as server:
        url = server.new_database()
        database = await Database.open(url, MIGRATIONS)
        await database.close()
        thread = DatabaseThread.open(url)
        store = SqlCallStore(thread)
        await store.apply([opening()])
        server.stop()

        with pytest.raises(StoreUnavailableError):
            await store.apply([LookUp(KEY)])

        server.start()
        (entry,) = await store.apply([LookUp(KEY)])
        await thread.close()

    assert entry.owner == "here"


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Its tables would be in one connection and the calls in another."""
    with pytest.raises(ConfigError, match="must name a file"):
        DatabaseThread.open(url)

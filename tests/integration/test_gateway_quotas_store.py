"""Accounts on real databases keep what every store of accounts promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from common.database import Database, DatabaseThread
from llm_gateway.accounts.sql_store import SqlAccountStore
from llm_gateway.accounts.valkey_store import ValkeyAccountStore
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.tables import MIGRATIONS
from tests.support.account_store_contract import AccountStoreContract
from tests.support.valkey import ValkeyServer


class TestSqlAccountStore(AccountStoreContract):
    """In SQLite and in PostgreSQL."""

    @pytest.fixture
    async def store(self, database_url: str) -> AsyncIterator[SqlAccountStore]:
        database = await Database.open(database_url, MIGRATIONS)
        await database.close()
        thread = DatabaseThread.open(database_url)
        yield SqlAccountStore(GroupCommit(SqlCallStore(thread)))
        await thread.close()


class TestValkeyAccountStore(AccountStoreContract):
    """In Valkey."""

    @pytest.fixture
    async def store(self, valkey: ValkeyServer) -> AsyncIterator[ValkeyAccountStore]:
        store = ValkeyAccountStore.open(valkey.new_database())
        yield store
        await store.close()

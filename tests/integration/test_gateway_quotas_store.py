"""Accounts on real databases keep what every store of accounts promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest import mock

import pytest

from common.database import Database, DatabaseThread
from llm_gateway.accounts.quotas import QuotaBook
from llm_gateway.accounts.sql_store import SqlAccountStore
from llm_gateway.accounts.valkey_store import ValkeyAccountStore
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.tables import MIGRATIONS
from tests.support.account_store_contract import AccountStoreContract
from tests.support.gateway import token
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


async def test_calls_that_come_together_read_their_quotas_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second, sixteen calls at once would all read what one of them finds."""
    database = await Database.open(database_url, MIGRATIONS)
    reading = mock.Mock(wraps=database.reading)
    monkeypatch.setattr(database, "reading", reading)
    book = QuotaBook(database)

    caps = await asyncio.gather(*(book.caps(token(), "sub") for _ in range(16)))
    await database.close()

    assert caps == [[]] * 16
    assert reading.call_count == 1


class TestValkeyAccountStore(AccountStoreContract):
    """In Valkey."""

    @pytest.fixture
    async def store(self, valkey: ValkeyServer) -> AsyncIterator[ValkeyAccountStore]:
        store = ValkeyAccountStore.open(valkey.new_database())
        yield store
        await store.close()

"""Accounts in memory keep what every store of accounts promises."""

from __future__ import annotations

import pytest

from llm_gateway.accounts.memory_store import MemoryAccountStore
from tests.support.account_store_contract import AccountStoreContract


class TestMemoryAccountStore(AccountStoreContract):
    """In this process's memory."""

    @pytest.fixture
    async def store(self) -> MemoryAccountStore:
        return MemoryAccountStore()

"""The store that other tests use keeps the contract that the real ones keep."""

from __future__ import annotations

import pytest

from tests.support.call_store_contract import CallStoreContract
from tests.support.memory_ledger import MemoryCallStore


class TestMemoryCallStore(CallStoreContract):
    """In memory."""

    @pytest.fixture
    def store(self) -> MemoryCallStore:
        return MemoryCallStore()

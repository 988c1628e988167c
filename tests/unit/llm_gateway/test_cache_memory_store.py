"""Cached answers in memory."""

from __future__ import annotations

import pytest

from llm_gateway.cache.store import MemoryCacheStore
from tests.support.cache_store_contract import TTL_S, CacheStoreContract, key
from tests.support.gateway import ManualClock


class TestMemoryCacheStore(CacheStoreContract):
    """One process's own."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def store(self, clock: ManualClock) -> MemoryCacheStore:
        return MemoryCacheStore(100_000, now=clock.now)


async def test_the_answer_longest_unused_makes_room() -> None:
    store = MemoryCacheStore(3_000)
    for name in ("a", "b"):
        await store.put(key(name), b"x" * 1_000, TTL_S)
    await store.get(key("a"))

    await store.put(key("c"), b"x" * 1_000, TTL_S)

    assert [await store.get(key(name)) is not None for name in "abc"] == [True, False, True]


async def test_what_is_larger_than_the_store_is_not_kept() -> None:
    """And it drives out nothing."""
    store = MemoryCacheStore(3_000)
    await store.put(key("a"), b"x", TTL_S)

    await store.put(key("b"), b"x" * 3_000, TTL_S)

    assert await store.get(key("a")) == b"x"
    assert await store.get(key("b")) is None

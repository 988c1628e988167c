"""What every CacheStore does; run over each of them."""

from __future__ import annotations

import hashlib

from llm_gateway.cache.store import CacheStore
from tests.support.gateway import ManualClock

TTL_S = 60.0


def key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=32).digest()


class CacheStoreContract:
    """Subclasses give the fixture `store`, over the clock of the fixture `clock`."""

    async def test_what_was_put_is_found(self, store: CacheStore) -> None:
        await store.put(key("a"), b"an answer", TTL_S)

        assert await store.get(key("a")) == b"an answer"

    async def test_another_key_finds_nothing(self, store: CacheStore) -> None:
        await store.put(key("a"), b"an answer", TTL_S)

        assert await store.get(key("b")) is None

    async def test_the_later_of_two_stays(self, store: CacheStore) -> None:
        await store.put(key("a"), b"first", TTL_S)
        await store.put(key("a"), b"second", TTL_S)

        assert await store.get(key("a")) == b"second"

    async def test_an_answer_is_given_until_it_expires(
        self, store: CacheStore, clock: ManualClock
    ) -> None:
        await store.put(key("a"), b"an answer", TTL_S)
        clock.advance(TTL_S - 1)
        before = await store.get(key("a"))
        clock.advance(1)

        assert (before, await store.get(key("a"))) == (b"an answer", None)

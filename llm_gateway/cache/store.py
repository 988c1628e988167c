"""Where answers are kept. This is the one in memory; `sql_store.py` is the one that stays, and
`valkey_store.py` the one for many machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from cachebox import LRUCache

_OVERHEAD_BYTES = 300
"""What an entry takes beside its answer."""


class CacheStore(Protocol):
    """Bytes by key, for a time."""

    async def get(self, key: bytes) -> bytes | None:
        """Return what was put there and has not expired; None for nothing."""
        ...

    async def put(self, key: bytes, data: bytes, ttl_s: float) -> None:
        """Keep bytes for a time, in place of what was there."""
        ...


class MemoryCacheStore:
    """Keeps what was used last, up to a size."""

    def __init__(self, bytes_max: int, *, now: Callable[[], float] = time.monotonic) -> None:
        """`now` gives seconds of any clock."""
        self._bytes_max = bytes_max
        self._now = now
        self._entries: LRUCache[bytes, tuple[float, bytes]] = LRUCache(
            bytes_max, getsizeof=lambda _, entry: _OVERHEAD_BYTES + len(entry[1])
        )

    async def get(self, key: bytes) -> bytes | None:
        """See CacheStore."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, data = entry
        if expires <= self._now():
            self._entries.pop(key)
            return None
        return data

    async def put(self, key: bytes, data: bytes, ttl_s: float) -> None:
        """See CacheStore; what is larger than the whole store is not kept."""
        if _OVERHEAD_BYTES + len(data) <= self._bytes_max:
            self._entries.insert(key, (self._now() + ttl_s, data))

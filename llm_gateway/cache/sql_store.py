"""Cached answers in the ledger's database: they outlive the process, and replicas share them."""

from __future__ import annotations

import time
from collections.abc import Callable

from llm_gateway.cache.operations import FindCached, KeepCached, TrimCached
from llm_gateway.ledger.group_commit import GroupCommit

_TRIM_EVERY = 128
"""Answers kept between two looks at what is too much."""
_MICROS = 1_000_000


class SqlCacheStore:
    """A CacheStore over the ledger's transactions; it raises LedgerUnavailableError as they do."""

    def __init__(
        self, commits: GroupCommit, *, answers_max: int, now: Callable[[], float] = time.time
    ) -> None:
        """`now` gives Unix time."""
        self._commits = commits
        self._answers_max = answers_max
        self._now = now
        self._kept = 0

    async def get(self, key: bytes) -> bytes | None:
        """See CacheStore."""
        return await self._commits.post(FindCached(key, self._now_us()))

    async def put(self, key: bytes, data: bytes, ttl_s: float) -> None:
        """See CacheStore; now and then it makes room."""
        now_us = self._now_us()
        kept = self._commits.post(
            KeepCached(key=key, answer=data, expires_us=now_us + int(ttl_s * _MICROS))
        )
        self._kept += 1
        if self._kept % _TRIM_EVERY == 0:
            # Twice as many as may have come, so that it catches up with other processes.
            await self._commits.post(TrimCached(now_us, self._answers_max, 2 * _TRIM_EVERY))
        await kept

    def _now_us(self) -> int:
        return int(self._now() * _MICROS)

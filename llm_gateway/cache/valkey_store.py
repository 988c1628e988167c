"""Cached answers in a Valkey server: gateways on several machines share them. It may lose what it
has at any time, so that a server with `maxmemory` and eviction is right for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import redis.asyncio as valkey
from redis.exceptions import RedisError

from common.config import ConfigError
from llm_gateway.errors import LedgerUnavailableError

_TIMEOUT_S = 0.25
"""A server that hangs must not hold calls up for longer than a cache is worth."""
_CONNECTIONS_MAX = 16
_TRIM_EVERY = 128
"""Answers kept between two looks at what is too much."""
_INDEX = "fathom:{cache}:by-expiry"
_EXPIRY_BYTES = 8
_MICROS = 1_000_000


class ValkeyCacheStore:
    """A CacheStore over one connection pool; it raises LedgerUnavailableError as SQL's does."""

    def __init__(
        self, client: valkey.Redis, *, answers_max: int, now: Callable[[], float] = time.time
    ) -> None:
        """`client` gives bytes; `now` gives Unix time."""
        self._client = client
        self.answers_max = answers_max
        """Answers kept; those that expire first go first."""
        self._now = now
        self._kept = 0

    @classmethod
    def open(cls, url: str, *, answers_max: int) -> Self:
        """Make one for a server's URL, which is connected to when it is needed; raises
        ConfigError."""
        try:
            pool = valkey.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS_MAX,
                timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
            )
        except ValueError as error:
            raise ConfigError(f"cache_url: {error}") from error
        return cls(valkey.Redis.from_pool(pool), answers_max=answers_max)

    async def get(self, key: bytes) -> bytes | None:
        """See CacheStore."""
        with _told():
            kept = await self._client.get(_name(key))
        if not isinstance(kept, bytes) or int.from_bytes(kept[:_EXPIRY_BYTES]) <= self._now_us():
            return None
        return kept[_EXPIRY_BYTES:]

    async def put(self, key: bytes, data: bytes, ttl_s: float) -> None:
        """See CacheStore; now and then it makes room."""
        expires_us = self._now_us() + int(ttl_s * _MICROS)
        value = expires_us.to_bytes(_EXPIRY_BYTES) + data
        with _told():
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.set(_name(key), value, px=max(int(ttl_s * 1000), 1))
                pipeline.zadd(_INDEX, {_name(key): expires_us})
                await pipeline.execute()
            self._kept += 1
            if self._kept % _TRIM_EVERY == 0:
                await self.trim()

    async def trim(self) -> None:
        """Let go of what is above the number; what has expired is gone by itself."""
        client: Any = self._client
        with _told():
            await client.zremrangebyscore(_INDEX, "-inf", self._now_us())
            beyond = await client.zcard(_INDEX) - self.answers_max
            if beyond > 0:
                oldest = await client.zpopmin(_INDEX, beyond)
                await client.unlink(*(name for name, _ in oldest))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    def _now_us(self) -> int:
        return int(self._now() * _MICROS)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say in the gateway's words that the server cannot be reached."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise LedgerUnavailableError from error


def _name(key: bytes) -> str:
    # One hash tag for all, since they are trimmed together.
    return f"fathom:{{cache}}:{key.hex()}"

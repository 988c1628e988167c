"""Accounts in Valkey, for many gateways: each step is one script, which nothing can interrupt. All
keys of a tenant have its name as hash tag, so that a cluster has them on one node.

What a call took is in the ledger's database all the same; the server is asked how much is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import orjson
import redis.asyncio as valkey
from redis.exceptions import RedisError

from common.config import ConfigError
from llm_gateway.accounts.account import Account
from llm_gateway.accounts.caps import (
    NOTHING,
    SLOTS,
    Amounts,
    Cap,
    Holding,
    Shortage,
    State,
    oldest_slot,
    slot_of,
)
from llm_gateway.errors import LedgerUnavailableError

_FOLDER = Path(__file__).parent
_TIMEOUT_S = 2.0
_CONNECTIONS_MAX = 16
_POOL_WAIT_S = 10.0
"""How long a step waits for one of them."""
_REMEMBERED_MS = 86_400_000
"""How long an expired hold can still be settled."""
_KINDS = "ctm"
"""First letters of the fields of calls, tokens and money in an account."""
_OWNERS = "fathom:owners"
"""Hash of all processes that have held anything, and until when each is known to live."""


class ValkeyAccountStore:
    """An AccountStore over one connection pool."""

    def __init__(self, client: valkey.Redis) -> None:
        self._client = client
        self._reserve = client.register_script((_FOLDER / "reserve.lua").read_text())
        self._settle = client.register_script((_FOLDER / "settle.lua").read_text())
        self._held: dict[str, Holding] = {}
        self._reserving: dict[str, asyncio.Task[Shortage | None]] = {}
        self._known: set[tuple[str, str]] = set()

    @classmethod
    def open(cls, url: str) -> Self:
        """Make one for a server's URL, which is connected to when it is needed; raises
        ConfigError."""
        try:
            pool = valkey.BlockingConnectionPool.from_url(
                url,
                decode_responses=True,
                max_connections=_CONNECTIONS_MAX,
                timeout=_POOL_WAIT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
            )
        except ValueError as error:
            raise ConfigError(f"accounts: {error}") from error
        return cls(valkey.Redis.from_pool(pool))

    async def reserve(self, holding: Holding) -> Shortage | None:
        """See AccountStore."""
        # Not cut off with its caller: nobody would know whether the server still does it.
        task = asyncio.create_task(self._try(holding))
        self._reserving[holding.hold_id] = task
        task.add_done_callback(lambda done: self._note_reserved(holding.hold_id, done))
        return await asyncio.shield(task)

    def settle(self, hold_id: str, taken: Amounts, now_us: int) -> asyncio.Future[None]:
        """See AccountStore."""
        return asyncio.create_task(self._end(hold_id, taken, now_us))

    async def states(self, caps: Sequence[Cap], now_us: int) -> list[State]:
        """See AccountStore."""
        with _told():
            contents = [
                await _reply(self._client.hgetall(_account_key(cap.account))) for cap in caps
            ]
        return [
            _account(cap, content, now_us).state(now_us)
            for cap, content in zip(caps, contents, strict=True)
        ]

    async def keep_lease(self, owner: str, until_us: int) -> None:
        """See AccountStore."""
        with _told():
            await _reply(self._client.hset(_OWNERS, owner, until_us))

    async def expire(self, now_us: int) -> int:
        """See AccountStore."""
        count = 0
        with _told():
            owners = await _reply(self._client.hgetall(_OWNERS))
            for owner, until_us in owners.items():
                if int(until_us) <= now_us:
                    count += await self._expire_all_of(owner, now_us)
        return count

    async def close(self) -> None:
        """See AccountStore."""
        await self._client.aclose()

    async def _try(self, holding: Holding) -> Shortage | None:
        self._held[holding.hold_id] = holding
        names = [cap.account for cap in holding.caps]
        args: list[Any] = [holding.now_us, holding.owner, holding.hold_id, *holding.amounts]
        args.append(orjson.dumps(names).decode())
        for cap in holding.caps:
            args += _cap_args(cap, holding.now_us)
        keys = _keys(holding.tenant, holding.owner, holding.hold_id, names)
        with _told():
            await self._introduce(holding.owner, holding.tenant)
            short = await self._reserve(keys=keys, args=args)
        if not short:
            return None
        del self._held[holding.hold_id]
        cap, content = holding.caps[short[0] - 1], short[1]
        values = dict(zip(content[::2], content[1::2], strict=True))
        account = _account(cap, values, holding.now_us)
        shortage = account.shortage(cap, holding.amounts, holding.now_us)
        assert shortage is not None, "the script and account.py disagree"
        return shortage

    def _note_reserved(self, hold_id: str, done: asyncio.Task[Shortage | None]) -> None:
        self._reserving.pop(hold_id, None)
        if not done.cancelled():
            done.exception()  # seen here, in case the caller has gone

    async def _end(self, hold_id: str, taken: Amounts, now_us: int) -> None:
        reserving = self._reserving.get(hold_id)
        if reserving is not None:
            await asyncio.wait({reserving})
        holding = self._held.get(hold_id)
        if holding is None:
            return
        names = [cap.account for cap in holding.caps]
        with _told():
            keys = _keys(holding.tenant, holding.owner, hold_id, names)
            await self._settle(keys=keys, args=[now_us, hold_id, SLOTS, *taken])
        self._held.pop(hold_id, None)

    async def _introduce(self, owner: str, tenant: str) -> None:
        """Let others find what a process holds, should it die."""
        if (owner, tenant) not in self._known:
            await _reply(self._client.hsetnx(_OWNERS, owner, "0"))
            await _reply(self._client.sadd(_tenants_key(owner), tenant))
            self._known.add((owner, tenant))

    async def _expire_all_of(self, owner: str, now_us: int) -> int:
        count, left = 0, 0
        for tenant in await _reply(self._client.smembers(_tenants_key(owner))):
            for hold_id in await _reply(self._client.smembers(_holds_key(tenant, owner))):
                named = await _reply(self._client.hget(_hold_key(tenant, hold_id), "accounts"))
                names = orjson.loads(named or b"[]")
                keys = _keys(tenant, owner, hold_id, names)
                args = [now_us, hold_id, SLOTS, _REMEMBERED_MS]
                count += await self._settle(keys=keys, args=args)
                left += 1
        if not left:  # a look later, in case it was only late
            await _reply(self._client.delete(_tenants_key(owner)))
            await _reply(self._client.hdel(_OWNERS, owner))
            self._known = {known for known in self._known if known[0] != owner}
        return count


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say in the gateway's words that the server cannot be reached."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise LedgerUnavailableError from error


async def _reply(sent: Awaitable[Any] | Any) -> Any:
    """Return a command's reply; the library's types leave open whether it is to be waited for."""
    return await sent


def _tenants_key(owner: str) -> str:
    return f"fathom:owner:{owner}"


def _holds_key(tenant: str, owner: str) -> str:
    return f"fathom:{{{tenant}}}:holds:{owner}"


def _hold_key(tenant: str, hold_id: str) -> str:
    return f"fathom:{{{tenant}}}:hold:{hold_id}"


def _account_key(account: str) -> str:
    tenant, _, rest = account.partition("/")
    return f"fathom:{{{tenant}}}:account:{rest}"


def _keys(tenant: str, owner: str, hold_id: str, accounts: Sequence[str]) -> list[str]:
    own = [_hold_key(tenant, hold_id), _holds_key(tenant, owner)]
    return own + [_account_key(account) for account in accounts]


def _cap_args(cap: Cap, now_us: int) -> list[int]:
    concurrency_max = -1 if cap.concurrency_max is None else cap.concurrency_max
    slots = slot_of(cap.window_us, now_us), oldest_slot(cap.window_us, now_us)
    limits = concurrency_max, *cap.limits
    return [cap.window_us, *slots, *limits, *cap.floor, *cap.opening, cap.forget_us]


def _account(cap: Cap, values: dict[str, str], now_us: int) -> Account:
    """Return an account as the scripts keep it."""
    account = Account(cap.window_us, NOTHING if values else cap.opening, now_us)
    held = [int(values.get(f"h{kind}", 0)) for kind in _KINDS]
    account.hold(Amounts(*held))
    for field, value in values.items():
        kind, slot = field[0], field[1:]
        if kind in _KINDS and slot.isdecimal():
            amounts = [int(value) if kind == each else 0 for each in _KINDS]
            account.take_in(int(slot), Amounts(*amounts))
    account.raise_to(cap.floor, now_us)
    return account

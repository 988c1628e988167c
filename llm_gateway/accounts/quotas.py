"""Quotas as operators set them, in the ledger's database, and which of them a call is under.

What counts against them is in the accounts; a quota is only a limit with a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database, DatabaseAwayError
from common.run_token import RunToken
from llm_gateway.accounts.caps import NOTHING, Amounts, Cap
from llm_gateway.accounts.tables import quotas
from llm_gateway.cache.flights import Flights
from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.sql_rows import INSERTS
from llm_gateway.ledger.usage import Dimension, UsageQuery, UsageReports

_FRESH_S = 1.0
"""Seconds after which another gateway's change is seen here."""
_WEEK_US = 7 * 86_400_000_000
"""How long an account is kept, at least, after it was last used and its window."""
_FIXED = frozenset({"tenant", "quota", "created_us"})
"""What setting a quota again leaves as it is."""
_MICROS = 1_000_000
_TENANTS_MAX = 10_000
"""Whose quotas are remembered at a time."""
_TIERS_MAX = 1_000
_SILENCE_S_MAX = 10.0
"""Longest wait for the database."""


class Scope(enum.IntEnum):
    """What counts together. The numbers are those of the contract."""

    TENANT = 1
    """Everything of the tenant."""
    KEY = 2
    """Each credential for itself."""
    RUN = 3
    """Each run for itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quota:
    """One limit that an operator set."""

    tenant: str
    """Whom it limits."""
    quota: str
    """Its name, unique in the tenant."""
    tier: str = ""
    """What it is narrowed to; empty for all tiers together."""
    scope: Scope = Scope.TENANT
    """What counts together."""
    window_us: int = 0
    """Stretch of time that the limits hold for, in microseconds; 0 for ever."""
    calls_max: int | None = None
    """Exchanges in the window; None for no limit, as below."""
    tokens_max: int | None = None
    """Tokens in the window."""
    cost_usd_nanos_max: int | None = None
    """Money in the window, in billionths of a US dollar."""
    concurrency_max: int | None = None
    """Exchanges at a time."""
    created_us: int = 0
    """When it was first set: nothing before counts. Microseconds of Unix time."""
    updated_us: int = 0
    """When it was set last. Microseconds of Unix time."""

    @property
    def name(self) -> str:
        """`tenants/{tenant}/quotas/{quota}`."""
        return f"tenants/{self.tenant}/quotas/{self.quota}"

    def cap(self, part: str, *, opening: Amounts = NOTHING, forget_us: int = 0) -> Cap:
        """Return it as a cap; `part` is the key or run that counts for itself, else empty.

        Where what counts changes, so does the account: counting begins anew.
        """
        kind = f"{self.created_us}.{self.window_us}.{self.scope.value}.{self.tier}"
        return Cap(
            account=f"{self.tenant}/quotas/{self.quota}/{kind}/{part}",
            window_us=self.window_us,
            calls_max=self.calls_max,
            tokens_max=self.tokens_max,
            cost_usd_nanos_max=self.cost_usd_nanos_max,
            concurrency_max=self.concurrency_max,
            opening=opening,
            forget_us=forget_us,
            quota=self.name,
        )


class QuotaBook:
    """The quotas of all tenants. Those of a tenant are read at most once a second."""

    def __init__(
        self,
        database: Database,
        *,
        usage: UsageReports | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`usage` tells what was taken before, for a store of accounts that may lose it; `now` is
        Unix time."""
        self._database = database
        self._usage = usage
        self._now = now
        self._known: dict[str, tuple[float, tuple[Quota, ...]]] = {}
        self._reads: Flights[tuple[Quota, ...]] = Flights()
        self._openings: dict[str, Amounts] = {}

    async def caps(self, token: RunToken, tier: str) -> list[Cap]:
        """See QuotaSource: one cap for each quota that a call is under."""
        caps = []
        for quota in await self._of(token.tenant):
            if quota.tier not in ("", tier) or (quota.scope is Scope.KEY and not token.key):
                continue
            part = {Scope.TENANT: "", Scope.KEY: token.key, Scope.RUN: token.run}[quota.scope]
            opening = await self._opening(quota)
            caps.append(quota.cap(part, opening=opening, forget_us=self._forget_us(quota)))
        return caps

    async def tenant_cap(self, quota: Quota) -> Cap:
        """Return the cap of a quota under which everything of its tenant counts together."""
        return quota.cap("", opening=await self._opening(quota), forget_us=self._forget_us(quota))

    async def set(self, quota: Quota) -> Quota:
        """Create or replace a quota and return it as it is stored."""
        now_us = int(self._now() * _MICROS)
        values = dataclasses.asdict(quota) | {"created_us": now_us, "updated_us": now_us}
        async with self._writing() as connection:
            insert = INSERTS[connection.dialect.name](quotas).values(**values)
            kept = {name: v for name, v in values.items() if name not in _FIXED}
            stored = await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=[quotas.c.tenant, quotas.c.quota], set_=kept
                ).returning(quotas)
            )
            row = stored.one()
        self._known.pop(quota.tenant, None)
        return _quota(row)

    async def get(self, tenant: str, quota: str) -> Quota | None:
        """Return one; None where there is none."""
        this = (quotas.c.tenant == tenant) & (quotas.c.quota == quota)
        async with self._reading() as connection:
            row = (await connection.execute(select(quotas).where(this))).one_or_none()
        return None if row is None else _quota(row)

    async def list_after(self, tenant: str, after: str, rows_max: int) -> list[Quota]:
        """Return a tenant's quotas by name, those behind `after`."""
        found = (
            select(quotas)
            .where(quotas.c.tenant == tenant, quotas.c.quota > after)
            .order_by(quotas.c.quota)
            .limit(rows_max)
        )
        async with self._reading() as connection:
            return [_quota(row) for row in await connection.execute(found)]

    async def delete(self, tenant: str, quota: str) -> bool:
        """Remove one; False where there was none."""
        this = (quotas.c.tenant == tenant) & (quotas.c.quota == quota)
        async with self._writing() as connection:
            gone = await connection.execute(delete(quotas).where(this))
        self._known.pop(tenant, None)
        return gone.rowcount == 1

    async def _of(self, tenant: str) -> tuple[Quota, ...]:
        known = self._known.get(tenant)
        if known is not None and self._now() < known[0]:
            return known[1]
        key = tenant.encode()
        reading = self._reads.get(key) or self._reads.begin(key, self._read(tenant), lambda: None)
        return await reading.outcome()

    async def _read(self, tenant: str) -> tuple[Quota, ...]:
        async with self._reading() as connection:
            rows = await connection.execute(select(quotas).where(quotas.c.tenant == tenant))
            found = tuple(_quota(row) for row in rows)
        if len(self._known) >= _TENANTS_MAX:
            self._known.clear()
        self._known[tenant] = self._now() + _FRESH_S, found
        return found

    async def _opening(self, quota: Quota) -> Amounts:
        """Return what a tenant's new account begins with: what the ledger has in its window."""
        if self._usage is None or quota.scope is not Scope.TENANT:
            return NOTHING
        name = quota.cap("").account
        if name not in self._openings:
            now_us = int(self._now() * _MICROS)
            since_us = now_us - quota.window_us if quota.window_us else 0
            query = UsageQuery(
                tenant=quota.tenant,
                start_us=max(quota.created_us, since_us),
                end_us=now_us,
                dimensions=(Dimension.TIER,),
            )
            total = NOTHING
            for row in await self._usage.sums(query, offset=0, size=_TIERS_MAX):
                if quota.tier in ("", row.values[Dimension.TIER]):
                    spent = row.spend.tokens.total, row.spend.cost_usd_nanos
                    total = total.plus(Amounts(row.answers, *spent))
            self._openings[name] = total
        return self._openings[name]

    def _forget_us(self, quota: Quota) -> int:
        """Return when an account may be forgotten; the same for a week, so that it is not written
        with every call."""
        if not quota.window_us and quota.scope is not Scope.RUN:
            return 0
        last_us = int(self._now() * _MICROS) + quota.window_us + 2 * _WEEK_US
        return last_us - last_us % _WEEK_US

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        async with _told(), self._database.reading() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with _told(), self._database.writing() as connection:
            yield connection


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Say in the gateway's words that the database cannot be reached, or hangs."""
    try:
        async with asyncio.timeout(_SILENCE_S_MAX):
            yield
    except (DatabaseAwayError, TimeoutError) as error:
        raise LedgerUnavailableError from error


def _quota(row: Any) -> Quota:
    values = {column.name: getattr(row, column.name) for column in quotas.c}
    return Quota(**values | {"scope": Scope(row.scope)})

"""The three questions of those who run the service, answered by the views of the database: what
each user costs, how long runs take by the size of their context, how many fail hour by hour.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import BigInteger, Integer, Select, column, select, table
from sqlalchemy.sql.expression import TableClause

from common.database import Database

_USERS_MAX = 1_000
_ROWS_MAX = 20_000
"""More than the hours of a week for a hundred tenants."""
_COST_BY_USER = table(
    "cost_by_user",
    column("tenant"),
    column("user_name"),
    column("runs", Integer),
    column("tokens", BigInteger),
    column("cost_usd_nanos", BigInteger),
)
_LATENCY = table(
    "latency_by_context_size",
    column("tenant"),
    column("context_bytes_from", BigInteger),
    column("runs", Integer),
    column("p50_us", BigInteger),
    column("p95_us", BigInteger),
)
_ERRORS = table(
    "errors_by_hour",
    column("tenant"),
    column("hour_us", BigInteger),
    column("runs", Integer),
    column("failed", Integer),
)


@dataclasses.dataclass(frozen=True)
class UserCost:
    """What one user's runs cost in a week."""

    tenant: str
    """Whose."""
    user: str
    """The label `user`, or the name of the API key; may be empty."""
    runs: int
    """Runs that ended."""
    tokens: int
    """Input and output tokens."""
    cost_usd_nanos: int
    """Money, in billionths of a US dollar."""


@dataclasses.dataclass(frozen=True)
class SizeLatency:
    """How long the runs of one size class took in a week."""

    tenant: str
    """Whose."""
    context_bytes_from: int
    """Smallest size of the class."""
    runs: int
    """Runs that ended."""
    p50_us: int
    """Half of them took at most this long, in microseconds."""
    p95_us: int
    """Nineteen in twenty took at most this long, in microseconds."""


@dataclasses.dataclass(frozen=True)
class HourErrors:
    """How many runs failed in one hour of the week."""

    tenant: str
    """Whose."""
    hour_us: int
    """The hour's first moment, in microseconds of Unix time."""
    runs: int
    """Runs that ended in it."""
    failed: int
    """Of them, those that failed."""


class Statistics:
    """The answers, of one tenant or, for None, of all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def cost_by_user(self, tenant: str | None) -> list[UserCost]:
        """Return what users cost, the dearest first."""
        view = _COST_BY_USER
        query = _of(view, tenant).order_by(view.c.cost_usd_nanos.desc(), view.c.user_name)
        return [UserCost(*row) for row in await self._rows(query.limit(_USERS_MAX))]

    async def latency_by_context_size(self, tenant: str | None) -> list[SizeLatency]:
        """Return how long runs took, small contexts first."""
        view = _LATENCY
        query = _of(view, tenant).order_by(view.c.context_bytes_from, view.c.tenant)
        return [SizeLatency(*row) for row in await self._rows(query.limit(_ROWS_MAX))]

    async def errors_by_hour(self, tenant: str | None) -> list[HourErrors]:
        """Return how many runs failed, the oldest hour first."""
        view = _ERRORS
        query = _of(view, tenant).order_by(view.c.hour_us, view.c.tenant)
        return [HourErrors(*row) for row in await self._rows(query.limit(_ROWS_MAX))]

    async def _rows(self, query: Select[Any]) -> Any:
        async with self._database.reading() as connection:
            return (await connection.execute(query)).all()


def _of(view: TableClause, tenant: str | None) -> Select[Any]:
    query = select(view)
    return query if tenant is None else query.where(view.c.tenant == tenant)

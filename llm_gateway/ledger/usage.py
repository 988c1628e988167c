"""What was spent, summed from the ledger over a range of time."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Integer, Select, cast, func, select

from common.database import Database, DatabaseAwayError
from llm_gateway.answers import Spend, Tokens
from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger.tables import exchanges

DAY_US = 86_400_000_000
_MICROS = 1_000_000


class Dimension(enum.Enum):
    """What to sum over."""

    RUN = "run"
    """One row a run."""
    MODEL = "model"
    """One row a deployment."""
    TIER = "tier"
    """One row a tier, or a deployment that was asked for by name."""
    DAY = "day"
    """One row a UTC day."""


_COLUMNS: Mapping[Dimension, Any] = {
    Dimension.RUN: exchanges.c.run,
    Dimension.MODEL: exchanges.c.model,
    Dimension.TIER: exchanges.c.tier,
    Dimension.DAY: exchanges.c.ended_us // DAY_US,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UsageQuery:
    """Which sums are wanted."""

    tenant: str
    """Whose."""
    start_us: int
    """From this time, in microseconds of Unix time."""
    end_us: int
    """Up to this time, which is left out."""
    dimensions: tuple[Dimension, ...]
    """One row for each combination; none for a single row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UsageSum:
    """One row of a report."""

    values: Mapping[Dimension, Any]
    """A name, or for the day its number since 1970; only what was asked for."""
    spend: Spend
    """What it took."""
    answers: int
    """Calls that were answered."""
    cache_hits: int = 0
    """Calls that got an answer which was given before, for nothing."""


class UsageReports:
    """Reports over the ledger's exchanges."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        """`now` is the clock, in seconds of Unix time, by which exchanges are written down: by
        another one the last of them could lie ahead of a report that ends now."""
        self._database = database
        self._now = now

    def now_us(self) -> int:
        """Return the time of the books, in microseconds."""
        return int(self._now() * _MICROS)

    async def sums(self, query: UsageQuery, *, offset: int, size: int) -> Sequence[UsageSum]:
        """Return rows from `offset`, the dearest first, at most `size`.

        Raises LedgerUnavailableError.
        """
        statement = _statement(query).offset(offset).limit(size)
        try:
            async with self._database.reading() as connection:
                rows = (await connection.execute(statement)).all()
        except DatabaseAwayError as error:
            raise LedgerUnavailableError from error
        return [_sum(query, row) for row in rows if row.rows]


def _statement(query: UsageQuery) -> Select[Any]:
    taken = exchanges.c
    by = [_COLUMNS[dimension].label(dimension.value) for dimension in query.dimensions]
    cost = func.sum(taken.cost_usd_nanos).label("cost_usd_nanos")
    return (
        select(
            *by,
            cost,
            func.sum(taken.input_tokens).label("input_tokens"),
            func.sum(taken.output_tokens).label("output_tokens"),
            func.sum(taken.cached_input_tokens).label("cached_input_tokens"),
            func.sum(taken.reasoning_tokens).label("reasoning_tokens"),
            func.sum(cast(taken.is_answer, Integer)).label("answers"),
            func.sum(cast(taken.is_cached, Integer)).label("cache_hits"),
            func.max(cast(taken.is_estimated, Integer)).label("is_estimated"),
            func.count().label("rows"),
        )
        .where(
            taken.tenant == query.tenant,
            taken.ended_us >= query.start_us,
            taken.ended_us < query.end_us,
        )
        .group_by(*by)
        .order_by(cost.desc(), *by)
    )


def _sum(query: UsageQuery, row: Any) -> UsageSum:
    return UsageSum(
        values={dimension: getattr(row, dimension.value) for dimension in query.dimensions},
        spend=Spend(
            tokens=Tokens(
                input=int(row.input_tokens),
                output=int(row.output_tokens),
                cached_input=int(row.cached_input_tokens),
                reasoning=int(row.reasoning_tokens),
            ),
            cost_usd_nanos=int(row.cost_usd_nanos),
            is_estimated=bool(row.is_estimated),
        ),
        answers=int(row.answers),
        cache_hits=int(row.cache_hits),
    )

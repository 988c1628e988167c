"""What is done to the ledger beside calls: leases, the calls of the dead, old rows, a run's sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Table,
    and_,
    bindparam,
    cast,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)

from llm_gateway.answers import Booked, Spend, Tokens
from llm_gateway.ledger.entries import CallKey, CallState, CallSum, CallSums
from llm_gateway.ledger.operations import (
    Bury,
    FindDead,
    Forget,
    KeepLease,
    Presume,
    RunSum,
    SumCall,
    SumCalls,
    SumRun,
)
from llm_gateway.ledger.sql_rows import (
    THIS_OPEN,
    exchange_columns,
    insert_into,
    key_columns,
    key_values,
)
from llm_gateway.ledger.tables import calls, exchanges, owners

_KEY = tuple_(calls.c.tenant, calls.c.run, calls.c.request_id)
_ENDED = (CallState.ANSWERED, CallState.SPENT)
_SUMS = (
    func.sum(exchanges.c.input_tokens),
    func.sum(exchanges.c.output_tokens),
    func.sum(exchanges.c.cached_input_tokens),
    func.sum(exchanges.c.reasoning_tokens),
    func.sum(exchanges.c.cost_usd_nanos),
    func.sum(cast(exchanges.c.is_answer, Integer)),
    func.max(cast(exchanges.c.is_estimated, Integer)),
)
_BURY = (
    update(calls)
    .where(THIS_OPEN)
    .values(state=CallState.SPENT, changed_us=bindparam("new_changed_us"))
    .returning(
        calls.c.tier,
        calls.c.exchange_id,
        calls.c.model,
        calls.c.held_input_tokens,
        calls.c.held_output_tokens,
        calls.c.held_cost_usd_nanos,
    )
)


def bury(connection: Connection, burial: Bury) -> bool:
    """See Bury."""
    values = key_values(burial.key, burial.owner) | {"new_changed_us": burial.now_us}
    row = connection.execute(_BURY, values).one_or_none()
    if row is None:
        return False
    if row.held_input_tokens or row.held_cost_usd_nanos:
        values = {
            "exchange_id": row.exchange_id,
            **key_columns(burial.key),
            "tier": row.tier,
            "model": row.model,
            "ended_us": burial.now_us,
            "input_tokens": row.held_input_tokens,
            "output_tokens": row.held_output_tokens,
            "cached_input_tokens": 0,
            "reasoning_tokens": 0,
            "cost_usd_nanos": row.held_cost_usd_nanos,
            "is_answer": False,
            "is_estimated": True,
        }
        connection.execute(insert_into(connection, exchanges).on_conflict_do_nothing(), values)
    return True


def presume(connection: Connection, presumed: Sequence[Presume]) -> list[None]:
    """See Presume."""
    ordered = sorted(presumed, key=lambda each: each.exchange.exchange_id)
    insert = insert_into(connection, exchanges).on_conflict_do_nothing()
    connection.execute(insert, [exchange_columns(each.exchange) for each in ordered])
    return [None] * len(presumed)


def keep_lease(connection: Connection, lease: KeepLease) -> None:
    """See KeepLease."""
    if not lease.until_us:
        connection.execute(delete(owners).where(owners.c.owner == lease.owner))
        return
    insert = insert_into(connection, owners).values(
        owner=lease.owner, lease_until_us=lease.until_us
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=[owners.c.owner], set_={"lease_until_us": lease.until_us}
        )
    )


def sum_run(connection: Connection, asked: SumRun) -> RunSum:
    """See SumRun."""
    taken = select(
        func.sum(exchanges.c.input_tokens + exchanges.c.output_tokens),
        func.sum(exchanges.c.cost_usd_nanos),
    ).where(exchanges.c.tenant == asked.tenant, exchanges.c.run == asked.run)
    held = select(
        func.sum(calls.c.held_input_tokens + calls.c.held_output_tokens),
        func.sum(calls.c.held_cost_usd_nanos),
    ).where(
        calls.c.tenant == asked.tenant,
        calls.c.run == asked.run,
        calls.c.state == CallState.OPEN,
        calls.c.owner != asked.owner,
    )
    sums = [connection.execute(each).one() for each in (taken, held)]
    return RunSum(
        tokens=sum(int(row[0] or 0) for row in sums),
        cost_usd_nanos=sum(int(row[1] or 0) for row in sums),
    )


def sum_call(connection: Connection, asked: SumCall) -> Booked:
    """See SumCall."""
    taken, key = exchanges.c, asked.key
    sums = select(*_SUMS).where(
        taken.tenant == key.tenant, taken.run == key.run, taken.request_id == key.request_id
    )
    return _booked(connection.execute(sums).one())


def sum_calls(connection: Connection, asked: SumCalls) -> CallSums:
    """See SumCalls."""
    taken = exchanges.c
    by = (taken.request_id, taken.tier, taken.model)
    sums = select(*_SUMS, *by).where(_begins(exchanges, asked), ~taken.is_cached).group_by(*by)
    under_way = (
        select(func.count())
        .select_from(calls)
        .where(_begins(calls, asked), calls.c.state == CallState.OPEN)
    )
    booked = [(row, _booked(row[: len(_SUMS)])) for row in connection.execute(sums)]
    return CallSums(
        calls=tuple(
            CallSum(
                request_id=row.request_id,
                tier=row.tier,
                model=row.model,
                spend=each.spend,
                answers=each.answers,
            )
            for row, each in booked
        ),
        open_calls=int(connection.execute(under_way).scalar_one()),
    )


def _begins(table: Table, asked: SumCalls) -> ColumnElement[bool]:
    # Not LIKE, which has wildcards and, on SQLite, one letter for its capital.
    head = func.substr(table.c.request_id, 1, len(asked.prefix))
    return and_(table.c.tenant == asked.tenant, table.c.run == asked.run, head == asked.prefix)


def _booked(sums: Sequence[Any]) -> Booked:
    """Return what the values of _SUMS say."""
    row = [int(each or 0) for each in sums]
    tokens = Tokens(input=row[0], output=row[1], cached_input=row[2], reasoning=row[3])
    spend = Spend(tokens=tokens, cost_usd_nanos=row[4], is_estimated=bool(row[6]))
    return Booked(spend, answers=row[5])


def find_dead(connection: Connection, asked: FindDead) -> list[Bury]:
    """See FindDead."""
    is_dead = or_(owners.c.lease_until_us.is_(None), owners.c.lease_until_us <= asked.now_us)
    dead = (
        select(calls.c.tenant, calls.c.run, calls.c.request_id, calls.c.owner)
        .select_from(calls.outerjoin(owners, calls.c.owner == owners.c.owner))
        .where(calls.c.state == CallState.OPEN, calls.c.owner != asked.owner, is_dead)
        .limit(asked.calls_max)
    )
    rows = connection.execute(dead)
    return [Bury(CallKey(*row[:3]), row.owner, asked.now_us) for row in rows]


def forget(connection: Connection, asked: Forget) -> int:
    """See Forget."""
    old = (
        select(calls.c.tenant, calls.c.run, calls.c.request_id)
        .where(calls.c.state.in_(_ENDED), calls.c.changed_us < asked.before_us)
        .limit(asked.rows_max)
    )
    old_exchanges = (
        select(exchanges.c.exchange_id)
        .where(exchanges.c.ended_us < asked.before_us)
        .limit(asked.rows_max)
    )
    statements = (
        delete(calls).where(_KEY.in_(old)),
        delete(exchanges).where(exchanges.c.exchange_id.in_(old_exchanges)),
    )
    return sum(connection.execute(each).rowcount for each in statements)

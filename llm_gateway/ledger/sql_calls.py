"""What is done to the ledger with every call, many callers' at a time where that is one statement.

Rows are touched in the order of their keys, so that two processes cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Executable, bindparam, func, select, update

from llm_gateway.ledger.entries import (
    CallEntry,
    CallKey,
    CallState,
    ExchangeRecord,
    StoredAnswer,
)
from llm_gateway.ledger.operations import (
    Fail,
    HoldAgain,
    KeepAnswer,
    LookUp,
    OpenCall,
    Release,
)
from llm_gateway.ledger.sql_rows import (
    DROP_OPEN,
    INSERTS,
    NO_HOLD,
    THIS_KEY,
    THIS_OPEN,
    exchange_columns,
    hold_columns,
    key_columns,
    key_values,
)
from llm_gateway.ledger.tables import calls, exchanges, owners

_LOOK_UP = (
    select(
        calls.c.digest,
        calls.c.state,
        calls.c.owner,
        calls.c.answer,
        calls.c.answer_key,
        func.coalesce(owners.c.lease_until_us, 0).label("lease_until_us"),
    )
    .select_from(calls.outerjoin(owners, calls.c.owner == owners.c.owner))
    .where(THIS_KEY)
)
_ANSWER = (
    update(calls)
    .where(THIS_OPEN)
    .values(
        state=CallState.ANSWERED,
        changed_us=bindparam("new_changed_us"),
        answer=bindparam("new_answer"),
        answer_key=bindparam("new_answer_key"),
        **NO_HOLD,
    )
)
_END_HOLD = update(calls).where(THIS_OPEN).values(**NO_HOLD)
_HOLD_AGAIN = (
    update(calls)
    .where(THIS_OPEN)
    .values(
        exchange_id=bindparam("new_exchange_id"),
        model=bindparam("new_model"),
        held_input_tokens=bindparam("new_held_input_tokens"),
        held_output_tokens=bindparam("new_held_output_tokens"),
        held_cost_usd_nanos=bindparam("new_held_cost_usd_nanos"),
    )
)
_SETTLED = (
    "ended_us",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
    "cost_usd_nanos",
    "is_answer",
    "is_estimated",
)
_BOOKING = {
    dialect: (booking := insert(exchanges)).on_conflict_do_update(
        index_elements=[exchanges.c.exchange_id],
        set_={name: booking.excluded[name] for name in _SETTLED},
    )
    for dialect, insert in INSERTS.items()
}
_OPEN = {
    dialect: insert(calls)
    .on_conflict_do_nothing()
    .returning(calls.c.tenant, calls.c.run, calls.c.request_id)
    for dialect, insert in INSERTS.items()
}


def keep_answers(connection: Connection, answers: Sequence[KeepAnswer]) -> list[None]:
    """See KeepAnswer."""
    _book(connection, [each.exchange for each in answers])
    kept = [
        key_values(each.exchange.key, each.owner)
        | {
            "new_changed_us": each.exchange.ended_us,
            "new_answer": each.answer.data,
            "new_answer_key": each.answer.key,
        }
        for each in answers
        if each.answer is not None
    ]
    dropped = [key_values(each.exchange.key, each.owner) for each in answers if each.answer is None]
    _many(connection, _ANSWER, kept)
    _many(connection, DROP_OPEN, dropped)
    return [None] * len(answers)


def fail_exchanges(connection: Connection, failures: Sequence[Fail]) -> list[None]:
    """See Fail."""
    taken = [each.exchange for each in failures if each.exchange.is_something]
    _book(connection, taken)
    _many(connection, _END_HOLD, [key_values(each.exchange.key, each.owner) for each in failures])
    return [None] * len(failures)


def release_calls(connection: Connection, releases: Sequence[Release]) -> list[None]:
    """See Release."""
    _many(connection, DROP_OPEN, [key_values(each.key, each.owner) for each in releases])
    return [None] * len(releases)


def hold_again(connection: Connection, again: HoldAgain) -> bool:
    """See HoldAgain."""
    values = {f"new_{name}": value for name, value in hold_columns(again.hold).items()}
    found = connection.execute(_HOLD_AGAIN, key_values(again.key, again.owner) | values)
    return found.rowcount == 1


def open_calls(connection: Connection, claims: Sequence[OpenCall]) -> list[bool]:
    """See OpenCall."""
    rows = [
        {
            **key_columns(claim.key),
            "digest": claim.digest,
            "tier": claim.tier,
            "state": CallState.OPEN,
            "owner": claim.owner,
            "changed_us": claim.now_us,
            **hold_columns(claim.hold),
        }
        for claim in sorted(claims, key=lambda claim: claim.key)
    ]
    won = connection.execute(_OPEN[connection.dialect.name], rows)
    left = {CallKey(*row) for row in won}
    outcomes = []
    for claim in claims:
        outcomes.append(claim.key in left)
        left.discard(claim.key)  # of two that came together the first has won
    return outcomes


def look_up(connection: Connection, asked: LookUp) -> CallEntry | None:
    """See LookUp."""
    # One by one: SQLite reads the whole table for a list of keys of several columns.
    row = connection.execute(_LOOK_UP, key_values(asked.key)).one_or_none()
    if row is None:
        return None
    return CallEntry(
        digest=row.digest,
        state=CallState(row.state),
        owner=row.owner,
        lease_until_us=row.lease_until_us,
        answer=StoredAnswer(data=row.answer, key=row.answer_key),
    )


def _book(connection: Connection, records: Sequence[ExchangeRecord]) -> None:
    if records:
        ordered = sorted(records, key=lambda record: record.exchange_id)
        rows = [exchange_columns(record) for record in ordered]
        connection.execute(_BOOKING[connection.dialect.name], rows)


def _many(connection: Connection, statement: Executable, values: list[dict[str, Any]]) -> None:
    if values:
        ordered = sorted(values, key=lambda v: (v["key_tenant"], v["key_run"], v["key_request_id"]))
        connection.execute(statement, ordered)

"""What is done to the ledger with every call, many callers' at a time where that is one statement.

Rows are touched in the order of their keys, so that two processes cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update

from llm_gateway.ledger.entries import (
    CallEntry,
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
from llm_gateway.ledger.prepared import Prepared
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

_LOOK_UP = Prepared(
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
_ANSWER = Prepared(
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
_END_HOLD = Prepared(update(calls).where(THIS_OPEN).values(**NO_HOLD))
_DROP_OPEN = Prepared(DROP_OPEN)
_LEAVE_SPENT = Prepared(update(calls).where(THIS_OPEN).values(state=CallState.SPENT, **NO_HOLD))
_CLEAR_SPENT = Prepared(delete(calls).where(THIS_KEY, calls.c.state == CallState.SPENT))
_HOLD_AGAIN = Prepared(
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
_BOOKING = Prepared(
    {
        dialect: (booking := insert(exchanges)).on_conflict_do_update(
            index_elements=[exchanges.c.exchange_id],
            set_={name: booking.excluded[name] for name in _SETTLED},
        )
        for dialect, insert in INSERTS.items()
    }
)
_OPENED = (
    *("tenant", "run", "request_id", "digest", "tier", "state", "owner", "changed_us"),
    *("exchange_id", "model", "held_input_tokens", "held_output_tokens", "held_cost_usd_nanos"),
)
_OPEN = Prepared(
    {dialect: insert(calls).on_conflict_do_nothing() for dialect, insert in INSERTS.items()},
    columns=_OPENED,
)


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
    _many(connection, _DROP_OPEN, dropped)
    return [None] * len(answers)


def fail_exchanges(connection: Connection, failures: Sequence[Fail]) -> list[None]:
    """See Fail."""
    taken = [each.exchange for each in failures if each.exchange.is_to_be_booked]
    _book(connection, taken)
    _many(connection, _END_HOLD, [key_values(each.exchange.key, each.owner) for each in failures])
    return [None] * len(failures)


def release_calls(connection: Connection, releases: Sequence[Release]) -> list[None]:
    """See Release."""
    for statement, is_spent in ((_DROP_OPEN, False), (_LEAVE_SPENT, True)):
        same = [each for each in releases if each.is_spent is is_spent]
        _many(connection, statement, [key_values(each.key, each.owner) for each in same])
    return [None] * len(releases)


def hold_again(connection: Connection, again: Sequence[HoldAgain]) -> list[bool]:
    """See HoldAgain."""
    rows = [
        key_values(each.key, each.owner)
        | {f"new_{name}": value for name, value in hold_columns(each.hold).items()}
        for each in again
    ]
    return [count == 1 for count in _HOLD_AGAIN.counts(connection, rows)]


def open_calls(connection: Connection, claims: Sequence[OpenCall]) -> list[bool]:
    """See OpenCall."""
    _many(connection, _CLEAR_SPENT, [key_values(claim.key) for claim in claims if claim.is_again])
    # Sorted by key, and stably: of two that came together the first wins.
    places = sorted(range(len(claims)), key=lambda place: claims[place].key)
    rows = [
        {
            **key_columns(claim.key),
            "digest": claim.digest,
            "tier": claim.tier,
            "state": CallState.OPEN.value,
            "owner": claim.owner,
            "changed_us": claim.now_us,
            **hold_columns(claim.hold),
        }
        for claim in (claims[place] for place in places)
    ]
    outcomes = dict(zip(places, _OPEN.counts(connection, rows), strict=True))
    return [outcomes[place] == 1 for place in range(len(claims))]


def look_up(connection: Connection, asked: Sequence[LookUp]) -> list[CallEntry | None]:
    """See LookUp."""
    # Key by key: SQLite reads the whole table for a list of keys of several columns.
    rows = _LOOK_UP.found(connection, [key_values(each.key) for each in asked])
    return [None if row is None else _entry(*row) for row in rows]


def _entry(
    digest: bytes,
    state: int,
    owner: str,
    answer: bytes | None,
    answer_key: str | None,
    lease_until_us: int,
) -> CallEntry:
    return CallEntry(
        digest=digest,
        state=CallState(state),
        owner=owner,
        lease_until_us=lease_until_us,
        answer=StoredAnswer(data=answer, key=answer_key),
    )


def _book(connection: Connection, records: Sequence[ExchangeRecord]) -> None:
    ordered = sorted(records, key=lambda record: record.exchange_id)
    _BOOKING.run(connection, [exchange_columns(record) for record in ordered])


def _many(connection: Connection, statement: Prepared, values: list[dict[str, Any]]) -> None:
    ordered = sorted(values, key=lambda v: (v["key_tenant"], v["key_run"], v["key_request_id"]))
    statement.run(connection, ordered)

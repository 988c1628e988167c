"""The steps of a transaction over accounts: lock and read the rows that they touch, do them all in
memory, write what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, delete, or_, select, update

from llm_gateway.accounts.account import Account, Hold
from llm_gateway.accounts.caps import Amounts
from llm_gateway.accounts.operations import AccountWork, Expire, Look, Reserve, Settle
from llm_gateway.accounts.register import Register
from llm_gateway.accounts.tables import accounts, holds
from llm_gateway.ledger.sql_rows import insert_into
from llm_gateway.ledger.tables import owners

_FORGOTTEN_MAX = 200
"""Rows deleted in one transaction."""
_KEYS_MAX = 500
"""In one statement; the databases have a limit of their own."""


def do_account_work(connection: Connection, work: Sequence[AccountWork]) -> list[Any]:
    """Do all steps in order and return their outcomes."""
    steps = [each.step for each in work]
    dead = {id(step): _dead(connection, step) for step in steps if isinstance(step, Expire)}
    hold_ids = {i for step in steps for i in _hold_ids(step)}.union(*dead.values())
    # Read before the lock only to know what to lock: what they say is read again behind it.
    named = {name for hold in _holds(connection, hold_ids).values() for name in hold.accounts}
    named |= {name for step in steps for name in _accounts(connection, step)}
    before = _lock(connection, named)
    register = Register(_loaded(before), _holds(connection, hold_ids))
    holds_before = dict(register.holds)
    outcomes = [_do(connection, register, step, dead.get(id(step), ())) for step in steps]
    _write_accounts(connection, register, before)
    _write_holds(connection, register, holds_before)
    return outcomes


def _do(
    connection: Connection,
    register: Register,
    step: Reserve | Settle | Look | Expire,
    dead: Iterable[str],
) -> Any:
    match step:
        case Reserve(holding):
            return register.reserve(holding)
        case Settle(hold_id, taken, now_us):
            return register.settle(hold_id, taken, now_us)
        case Look(caps, now_us):
            return [register.state(cap, now_us) for cap in caps]
        case Expire():
            count = sum(register.expire(hold_id, step.now_us) for hold_id in dead)
            register.forget(step.now_us)
            _forget_holds(connection, step)
            return count


def _hold_ids(step: Reserve | Settle | Look | Expire) -> list[str]:
    match step:
        case Reserve(holding):
            return [holding.hold_id]
        case Settle(hold_id):
            return [hold_id]
        case _:
            return []


def _accounts(connection: Connection, step: Reserve | Settle | Look | Expire) -> list[str]:
    match step:
        case Reserve(holding):
            return [cap.account for cap in holding.caps]
        case Look(caps):
            return [cap.account for cap in caps]
        case Expire(now_us):
            old = accounts.c.forget_us.between(1, now_us)
            found = select(accounts.c.account).where(old).limit(_FORGOTTEN_MAX)
            return list(connection.execute(found).scalars())
        case _:
            return []


def _lock(connection: Connection, names: Iterable[str]) -> dict[str, tuple[bytes, int]]:
    """Return the rows of accounts, which nobody else can change until the transaction ends.

    One that is not there is made, empty: two processes must not both open it. It is written to
    before it is read, so that SQLite takes its lock first; in the order of names, so that no two
    processes wait for each other.
    """
    rows = [{"account": name, "numbers": b"", "forget_us": 0} for name in sorted(names)]
    if not rows:
        return {}
    insert = insert_into(connection, accounts)
    locking = insert.on_conflict_do_update(
        index_elements=[accounts.c.account], set_={"account": insert.excluded.account}
    ).returning(accounts.c.account, accounts.c.numbers, accounts.c.forget_us)
    found = connection.execute(locking, rows)
    return {row.account: (bytes(row.numbers), row.forget_us) for row in found}


def _loaded(rows: dict[str, tuple[bytes, int]]) -> dict[str, Account]:
    return {name: Account.load(*row) for name, row in rows.items() if row[0]}


def _holds(connection: Connection, hold_ids: Iterable[str]) -> dict[str, Hold]:
    ids, found = sorted(hold_ids), {}
    for start in range(0, len(ids), _KEYS_MAX):
        some = ids[start : start + _KEYS_MAX]
        for row in connection.execute(select(holds).where(holds.c.hold_id.in_(some))):
            found[row.hold_id] = Hold(
                owner=row.owner,
                amounts=Amounts(row.calls, row.tokens, row.cost_usd_nanos),
                accounts=tuple(orjson.loads(row.accounts)),
                expired_us=row.expired_us,
            )
    return found


_WRITE_ACCOUNT = (
    update(accounts)
    .where(accounts.c.account == bindparam("key"))
    .values(numbers=bindparam("new_numbers"), forget_us=bindparam("new_forget_us"))
)
_DROP_ACCOUNT = delete(accounts).where(accounts.c.account == bindparam("key"))
_WRITE_EXPIRY = (
    update(holds)
    .where(holds.c.hold_id == bindparam("key"))
    .values(expired_us=bindparam("new_expired_us"))
)
_DROP_HOLD = delete(holds).where(holds.c.hold_id == bindparam("key"))


def _write_accounts(
    connection: Connection, register: Register, before: dict[str, tuple[bytes, int]]
) -> None:
    changed = []
    for name, account in register.accounts.items():
        numbers = account.dump()
        if (numbers, account.forget_us) != before[name]:
            new = {"new_numbers": numbers, "new_forget_us": account.forget_us}
            changed.append({"key": name} | new)
    if changed:
        connection.execute(_WRITE_ACCOUNT, changed)
    if unwanted := [{"key": name} for name in before if name not in register.accounts]:
        connection.execute(_DROP_ACCOUNT, unwanted)


def _write_holds(connection: Connection, register: Register, before: dict[str, Hold]) -> None:
    added = [
        {
            "hold_id": hold_id,
            "owner": hold.owner,
            **hold.amounts._asdict(),
            "accounts": orjson.dumps(hold.accounts),
            "expired_us": hold.expired_us,
        }
        for hold_id, hold in register.holds.items()
        if hold_id not in before
    ]
    expired = [
        {"key": hold_id, "new_expired_us": hold.expired_us}
        for hold_id, hold in register.holds.items()
        if hold_id in before and hold.expired_us
    ]
    settled = [{"key": hold_id} for hold_id in before if hold_id not in register.holds]
    for statement, rows in ((_WRITE_EXPIRY, expired), (_DROP_HOLD, settled)):
        if rows:
            connection.execute(statement, rows)
    if added:
        connection.execute(insert_into(connection, holds), added)


def _dead(connection: Connection, step: Expire) -> list[str]:
    is_dead = or_(owners.c.lease_until_us.is_(None), owners.c.lease_until_us <= step.now_us)
    found = (
        select(holds.c.hold_id)
        .select_from(holds.outerjoin(owners, holds.c.owner == owners.c.owner))
        .where(holds.c.expired_us == 0, is_dead)
        .limit(step.holds_max)
    )
    return list(connection.execute(found).scalars())


def _forget_holds(connection: Connection, step: Expire) -> None:
    old = (
        select(holds.c.hold_id)
        .where(holds.c.expired_us > 0, holds.c.expired_us < step.forget_before_us)
        .limit(_FORGOTTEN_MAX)
    )
    connection.execute(delete(holds).where(holds.c.hold_id.in_(old)))

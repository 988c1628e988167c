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
from llm_gateway.ledger.prepared import Prepared
from llm_gateway.ledger.sql_rows import INSERTS
from llm_gateway.ledger.tables import owners

_FORGOTTEN_MAX = 200
"""Rows deleted in one transaction."""


def do_account_work(connection: Connection, work: Sequence[AccountWork]) -> list[Any]:
    """Do all steps in order and return their outcomes."""
    steps = [each.step for each in work]
    dead = {id(step): _dead(connection, step) for step in steps if isinstance(step, Expire)}
    settled = {step.hold_id for step in steps if isinstance(step, Settle)}.union(*dead.values())
    known = {step.hold_id for step in steps if isinstance(step, Settle) and step.accounts}
    # Read before the lock only to know what to lock: what they say is read again behind it.
    found = _holds(connection, settled - known).values()
    named = {name for hold in found for name in hold.accounts}
    named |= {name for step in steps for name in _accounts(connection, step)}
    before = _lock(connection, named)
    reserved = {step.holding.hold_id for step in steps if isinstance(step, Reserve)}
    register = Register(_loaded(before), _holds(connection, settled | reserved))
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


def _accounts(connection: Connection, step: Reserve | Settle | Look | Expire) -> list[str]:
    match step:
        case Reserve(holding):
            return [cap.account for cap in holding.caps]
        case Settle():
            return [*step.accounts]
        case Look(caps):
            return [cap.account for cap in caps]
        case Expire(now_us):
            old = accounts.c.forget_us.between(1, now_us)
            found = select(accounts.c.account).where(old).limit(_FORGOTTEN_MAX)
            return list(connection.execute(found).scalars())
        case _:
            return []


_LOCK = Prepared(
    {
        dialect: (locking := insert(accounts))
        .on_conflict_do_update(
            index_elements=[accounts.c.account], set_={"account": locking.excluded.account}
        )
        .returning(accounts.c.account, accounts.c.numbers, accounts.c.forget_us)
        for dialect, insert in INSERTS.items()
    }
)
_READ_HOLD = Prepared(select(holds).where(holds.c.hold_id == bindparam("key")))
_WRITE_ACCOUNT = Prepared(
    update(accounts)
    .where(accounts.c.account == bindparam("key"))
    .values(numbers=bindparam("new_numbers"), forget_us=bindparam("new_forget_us"))
)
_DROP_ACCOUNT = Prepared(delete(accounts).where(accounts.c.account == bindparam("key")))
_ADD_HOLD = Prepared({dialect: insert(holds) for dialect, insert in INSERTS.items()})
_WRITE_EXPIRY = Prepared(
    update(holds)
    .where(holds.c.hold_id == bindparam("key"))
    .values(expired_us=bindparam("new_expired_us"))
)
_DROP_HOLD = Prepared(delete(holds).where(holds.c.hold_id == bindparam("key")))


def _lock(connection: Connection, names: Iterable[str]) -> dict[str, tuple[bytes, int]]:
    """Return the rows of accounts, which nobody else can change until the transaction ends.

    One that is not there is made, empty: two processes must not both open it. It is written to
    before it is read, so that SQLite takes its lock first; in the order of names, so that no two
    processes wait for each other.
    """
    rows = [{"account": name, "numbers": b"", "forget_us": 0} for name in sorted(names)]
    found = (row for row in _LOCK.found(connection, rows) if row is not None)
    return {account: (bytes(numbers), forget_us) for account, numbers, forget_us in found}


def _loaded(rows: dict[str, tuple[bytes, int]]) -> dict[str, Account]:
    return {name: Account.load(*row) for name, row in rows.items() if row[0]}


def _holds(connection: Connection, hold_ids: Iterable[str]) -> dict[str, Hold]:
    rows = _READ_HOLD.found(connection, [{"key": hold_id} for hold_id in sorted(hold_ids)])
    return {row[0]: _hold(*row[1:]) for row in rows if row is not None}


def _hold(  # in the order of the table's columns
    owner: str, calls: int, tokens: int, cost_usd_nanos: int, names: bytes, expired_us: int
) -> Hold:
    return Hold(
        owner=owner,
        amounts=Amounts(calls, tokens, cost_usd_nanos),
        accounts=tuple(orjson.loads(names)),
        expired_us=expired_us,
    )


def _write_accounts(
    connection: Connection, register: Register, before: dict[str, tuple[bytes, int]]
) -> None:
    changed = []
    for name, account in register.accounts.items():
        numbers = account.dump()
        if (numbers, account.forget_us) != before[name]:
            new = {"new_numbers": numbers, "new_forget_us": account.forget_us}
            changed.append({"key": name} | new)
    _WRITE_ACCOUNT.run(connection, changed)
    unwanted = [{"key": name} for name in before if name not in register.accounts]
    _DROP_ACCOUNT.run(connection, unwanted)


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
    _WRITE_EXPIRY.run(connection, expired)
    _DROP_HOLD.run(connection, settled)
    _ADD_HOLD.run(connection, added)


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

"""The ledger in SQL, on SQLite and PostgreSQL: many operations in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from common.database import DatabaseThread
from llm_gateway.accounts.operations import AccountWork
from llm_gateway.accounts.sql_work import do_account_work
from llm_gateway.cache.operations import FindCached, KeepCached, TrimCached
from llm_gateway.cache.sql_work import find_cached, keep_cached, trim_cached
from llm_gateway.ledger import sql_calls, sql_upkeep
from llm_gateway.ledger.operations import (
    Bury,
    Fail,
    FindDead,
    Forget,
    HoldAgain,
    KeepAnswer,
    KeepLease,
    LookUp,
    OpenCall,
    Operation,
    Presume,
    Release,
    StoreUnavailableError,
    SumCall,
    SumCalls,
    SumRun,
)


class SqlCallStore:
    """The ledger over one connection in a thread of its own."""

    def __init__(self, database: DatabaseThread) -> None:
        self._database = database

    async def apply(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """See CallStore."""
        try:
            return await self._database.transact(lambda connection: _apply(connection, operations))
        except (OperationalError, InterfaceError) as error:
            raise StoreUnavailableError(_kind(error)) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreUnavailableError(_kind(error)) from error
            raise


def _kind(error: Exception) -> str:
    """Name an error without its text, which holds the statement's values."""
    cause = getattr(error, "orig", None)
    return type(cause or error).__name__


def _apply(connection: Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    outcomes: dict[int, Any] = {}
    by_kind: dict[type, list[tuple[int, Any]]] = {}
    for position, operation in enumerate(operations):
        by_kind.setdefault(type(operation), []).append((position, operation))
    for kind, work in _IN_ORDER.items():
        if kind in by_kind:
            positions, same = zip(*by_kind.pop(kind), strict=True)
            outcomes.update(zip(positions, work(connection, same), strict=True))
    assert not by_kind, by_kind
    return [outcomes[position] for position in range(len(operations))]


def _one_by_one(work: Callable[[Connection, Any], Any]) -> Callable[..., list[Any]]:
    return lambda connection, operations: [work(connection, each) for each in operations]


_IN_ORDER: Mapping[type, Callable[[Connection, Any], list[Any]]] = {
    # A caller who goes away while its call is being opened releases it in the same transaction.
    OpenCall: sql_calls.open_calls,
    KeepAnswer: sql_calls.keep_answers,
    Fail: sql_calls.fail_exchanges,
    Release: sql_calls.release_calls,
    HoldAgain: sql_calls.hold_again,
    Presume: sql_upkeep.presume,
    Bury: _one_by_one(sql_upkeep.bury),
    KeepLease: _one_by_one(sql_upkeep.keep_lease),
    Forget: _one_by_one(sql_upkeep.forget),
    AccountWork: do_account_work,
    KeepCached: keep_cached,
    TrimCached: _one_by_one(trim_cached),
    LookUp: sql_calls.look_up,
    FindCached: _one_by_one(find_cached),
    SumRun: _one_by_one(sql_upkeep.sum_run),
    SumCall: _one_by_one(sql_upkeep.sum_call),
    SumCalls: _one_by_one(sql_upkeep.sum_calls),
    FindDead: _one_by_one(sql_upkeep.find_dead),
}

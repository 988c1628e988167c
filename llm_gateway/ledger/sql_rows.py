"""How the ledger's values stand in its tables, and how a row is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete
from sqlalchemy.dialects import postgresql, sqlite

from llm_gateway.ledger.entries import CallKey, CallState, ExchangeRecord, Hold
from llm_gateway.ledger.tables import calls

INSERTS: Mapping[str, Callable[[Any], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
"""What makes an insert that may meet a row, by dialect."""
THIS_KEY = and_(
    calls.c.tenant == bindparam("key_tenant"),
    calls.c.run == bindparam("key_run"),
    calls.c.request_id == bindparam("key_request_id"),
)
"""A call, whose key is given as `key_values`."""
THIS_OPEN = and_(THIS_KEY, calls.c.owner == bindparam("key_owner"), calls.c.state == CallState.OPEN)
"""An open call of one owner, whose key and owner are given as `key_values`."""
NO_HOLD = {"held_input_tokens": 0, "held_output_tokens": 0, "held_cost_usd_nanos": 0}
"""The columns of a call that no exchange is under way for."""
DROP_OPEN = delete(calls).where(THIS_OPEN)
"""Frees the key of such a call."""


def insert_into(connection: Connection, table: Any) -> Any:
    """Return an insert that can say what to do where the row is there already."""
    return INSERTS[connection.dialect.name](table)


def key_columns(key: CallKey) -> dict[str, Any]:
    """Return a call's primary key."""
    return {"tenant": key.tenant, "run": key.run, "request_id": key.request_id}


def key_values(key: CallKey, owner: str | None = None) -> dict[str, Any]:
    """Return what THIS_KEY is about, and with an owner THIS_OPEN."""
    values = {f"key_{name}": value for name, value in key_columns(key).items()}
    return values if owner is None else values | {"key_owner": owner}


def hold_columns(hold: Hold) -> dict[str, Any]:
    """Return the columns of an open call's hold."""
    return {
        "exchange_id": hold.exchange_id,
        "model": hold.model,
        "held_input_tokens": hold.input_tokens,
        "held_output_tokens": hold.output_tokens,
        "held_cost_usd_nanos": hold.cost_usd_nanos,
    }


def exchange_columns(record: ExchangeRecord) -> dict[str, Any]:
    """Return an exchange's row."""
    tokens = record.spend.tokens
    return {
        "exchange_id": record.exchange_id,
        **key_columns(record.key),
        "tier": record.tier,
        "model": record.model,
        "ended_us": record.ended_us,
        "input_tokens": tokens.input,
        "output_tokens": tokens.output,
        "cached_input_tokens": tokens.cached_input,
        "reasoning_tokens": tokens.reasoning,
        "cost_usd_nanos": record.spend.cost_usd_nanos,
        "is_answer": record.is_answer,
        "is_estimated": record.spend.is_estimated,
        "is_cached": record.is_cached,
    }

"""The ledger's tables. Only generic types: the same code runs on SQLite and PostgreSQL.

Times are microseconds of Unix time, money is billionths of a US dollar.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
)

MIGRATIONS = Path(__file__).parents[1] / "migrations"
"""What makes them, for Alembic."""
VERSION_TABLE = "gateway_version"
"""Where Alembic notes what was applied."""
metadata = MetaData()

# One row a call that is under way or answered, or that ended without an answer and not for nothing.
# The key of one that failed for nothing has none.
calls = Table(
    "calls",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("run", String(128), primary_key=True),
    Column("request_id", String(256), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("tier", String(256), nullable=False),
    Column("state", Integer, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    # The exchange under way and its worst case; zeros between two exchanges. Of an open call only.
    Column("exchange_id", String(96), nullable=False),
    Column("model", String(256), nullable=False),
    Column("held_input_tokens", BigInteger, nullable=False),
    Column("held_output_tokens", BigInteger, nullable=False),
    Column("held_cost_usd_nanos", BigInteger, nullable=False),
    # One of the two is set in an answered call.
    Column("answer", LargeBinary),
    Column("answer_key", String(64)),
    Index("calls_by_state", "state", "changed_us"),
)

# One row an exchange with a provider that took something, or an answer that was given again.
# Only ever added to, until retention.
exchanges = Table(
    "exchanges",
    metadata,
    Column("exchange_id", String(96), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("run", String(128), nullable=False),
    Column("request_id", String(256), nullable=False),
    Column("tier", String(256), nullable=False),
    Column("model", String(256), nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_usd_nanos", BigInteger, nullable=False),
    Column("is_answer", Boolean, nullable=False),
    Column("is_estimated", Boolean, nullable=False),
    # No exchange: the call got an answer from the cache.
    Column("is_cached", Boolean, nullable=False, server_default=false()),
    Index("exchanges_by_call", "tenant", "run", "request_id"),
    Index("exchanges_by_time", "ended_us"),
)

# One row a gateway process: what it owns is its own until then.
owners = Table(
    "owners",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("lease_until_us", BigInteger, nullable=False),
)

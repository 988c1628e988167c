"""The tables of quotas and accounts, beside the ledger's and in the same database.

Times are microseconds of Unix time, money is billionths of a US dollar.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table

from llm_gateway.ledger.tables import metadata

# One row an account; `numbers` is what `account.py` makes of it. The row is the account's lock.
accounts = Table(
    "accounts",
    metadata,
    Column("account", String(512), primary_key=True),
    Column("numbers", LargeBinary, nullable=False),
    Column("forget_us", BigInteger, nullable=False),
    Index("accounts_by_forget", "forget_us"),
)

# One row an exchange that is under way, or whose owner died.
holds = Table(
    "holds",
    metadata,
    Column("hold_id", String(96), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_usd_nanos", BigInteger, nullable=False),
    # Names of the accounts, as a JSON list.
    Column("accounts", LargeBinary, nullable=False),
    Column("expired_us", BigInteger, nullable=False),
    Index("holds_by_expiry", "expired_us"),
)

quotas = Table(
    "quotas",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("quota", String(128), primary_key=True),
    Column("tier", String(256), nullable=False),
    Column("scope", Integer, nullable=False),
    Column("window_us", BigInteger, nullable=False),
    Column("calls_max", BigInteger),
    Column("tokens_max", BigInteger),
    Column("cost_usd_nanos_max", BigInteger),
    Column("concurrency_max", BigInteger),
    # A quota counts from when it was made; setting it again changes its limits alone.
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
)

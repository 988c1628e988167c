"""The table of cached answers, in the ledger's database. Times are microseconds of Unix time."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Table

from llm_gateway.ledger.tables import metadata

# Nothing but its key, a digest with the tenant in it, says whose an answer is.
cached_answers = Table(
    "cached_answers",
    metadata,
    Column("key", LargeBinary(32), primary_key=True),
    Column("answer", LargeBinary, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Index("cached_answers_by_expiry", "expires_us"),
)

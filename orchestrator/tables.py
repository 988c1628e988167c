"""The orchestrator's tables. Only generic types: the same code runs on SQLite and PostgreSQL.

Times are microseconds of Unix time. What clients see of a run is kept as the contract's own
bytes; columns hold only what is searched by.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

MIGRATIONS = Path(__file__).parent / "migrations"
"""What makes them, for Alembic."""
metadata = MetaData()

contexts = Table(
    "contexts",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("context_id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("title", String(256), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("blake3", String(64), nullable=False),
    Column("blob_key", String(128), nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("code_point_max", Integer, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("malformed_sequences", BigInteger, nullable=False),
    Column("document_count", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("contexts_newest", "tenant", "created_us", "context_id"),
)

documents = Table(
    "documents",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("context_id", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(1024), nullable=False),
    Column("offset_bytes", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("code_point_max", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    # Ids begin with the time, so their order is the order of creation.
    Column("run_id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    # Two parts of one serialized Run: what never changes, and what each step changes.
    Column("head", LargeBinary, nullable=False),
    Column("progress", LargeBinary, nullable=False),
    Index("runs_newest", "tenant", "run_id"),
    Index("runs_by_state", "state", "run_id"),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event", LargeBinary, nullable=False),
)

run_requests = Table(
    "run_requests",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("request_id", String(256), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("run_requests_oldest", "created_us"),
)

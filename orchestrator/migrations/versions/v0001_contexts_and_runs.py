"""Contexts with their documents, runs with their events, and remembered request ids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    _create_contexts()
    _create_runs()


def downgrade() -> None:
    """Drop them."""
    for table in ("run_requests", "run_events", "runs", "documents", "contexts"):
        op.drop_table(table)


def _create_contexts() -> None:
    op.create_table(
        "contexts",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("context_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("title", sa.String(256), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("blake3", sa.String(64), nullable=False),
        sa.Column("blob_key", sa.String(128), nullable=False),
        sa.Column("characters", sa.BigInteger, nullable=False),
        sa.Column("code_point_max", sa.Integer, nullable=False),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("malformed_sequences", sa.BigInteger, nullable=False),
        sa.Column("document_count", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("contexts_newest", "contexts", ["tenant", "created_us", "context_id"])
    op.create_table(
        "documents",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("context_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("characters", sa.BigInteger, nullable=False),
        sa.Column("code_point_max", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("progress", sa.LargeBinary, nullable=False),
    )
    op.create_index("runs_newest", "runs", ["tenant", "run_id"])
    op.create_index("runs_by_state", "runs", ["state", "run_id"])
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "run_requests",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("request_id", sa.String(256), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("run_requests_oldest", "run_requests", ["created_us"])

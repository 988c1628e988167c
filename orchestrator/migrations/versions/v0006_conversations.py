"""Conversations, and which runs are theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "conversations",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("conversation_id", sa.String(64), primary_key=True),
        sa.Column("context_id", sa.String(64), nullable=False),
        sa.Column("limits", sa.LargeBinary, nullable=False),
        sa.Column("idle_ttl_us", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("used_us", sa.BigInteger, nullable=False),
        sa.Column("newest_run_id", sa.String(64), nullable=True),
        sa.Column("usage", sa.LargeBinary, nullable=False),
        sa.Column("sub_calls", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String(256), nullable=True),
        sa.Column("digest", sa.LargeBinary, nullable=True),
    )
    op.create_index(
        "conversations_by_request", "conversations", ["tenant", "request_id"], unique=True
    )
    op.create_table(
        "conversation_runs",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("conversation_id", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(64), primary_key=True),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("conversation_runs")
    op.drop_table("conversations")

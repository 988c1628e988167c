"""Cached answers, and a mark on what the ledger has of those that were given again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the column."""
    op.create_table(
        "cached_answers",
        sa.Column("key", sa.LargeBinary(32), primary_key=True),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
    )
    op.create_index("cached_answers_by_expiry", "cached_answers", ["expires_us"])
    op.add_column(
        "exchanges",
        sa.Column("is_cached", sa.Boolean, nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_column("exchanges", "is_cached")
    op.drop_table("cached_answers")

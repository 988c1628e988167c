"""Whose checkpoints there are, and when they are looked at next."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a place for them."""
    op.create_table(
        "checkpoint_owners",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=True),
        sa.Column("removed_us", sa.BigInteger, nullable=True),
    )
    op.create_index("checkpoint_owners_due", "checkpoint_owners", ["due_us"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("checkpoint_owners")

"""Executors, their leases, and who drives which run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of executors, and note in runs who drives them."""
    op.create_table(
        "executors",
        sa.Column("executor_id", sa.String(128), primary_key=True),
        sa.Column("lease_end_us", sa.BigInteger, nullable=False),
    )
    for column in _columns():
        op.add_column("runs", column)


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("runs") as runs:
        for column in _columns():
            runs.drop_column(column.name)
    op.drop_table("executors")


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("owner", sa.String(128), nullable=True),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("places", sa.Integer, nullable=False, server_default="1"),
        sa.Column("is_stop_wished", sa.Boolean, nullable=False, server_default=sa.false()),
    ]

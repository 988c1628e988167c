"""Which runs' usage is looked at once more after their end, and what was found then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a place for it."""
    op.create_table(
        "late_usage",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("due_us", sa.BigInteger, nullable=True),
        sa.Column("settled", sa.LargeBinary, nullable=True),
    )
    op.create_index("late_usage_due", "late_usage", ["due_us"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("late_usage")

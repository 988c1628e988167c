"""An index to sum up what was booked for one call; it serves the sums of a run as well."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index, which the other one is a part of."""
    op.create_index("exchanges_by_call", "exchanges", ["tenant", "run", "request_id"])
    op.drop_index("exchanges_by_run", "exchanges")


def downgrade() -> None:
    """Put the other one back."""
    op.create_index("exchanges_by_run", "exchanges", ["tenant", "run"])
    op.drop_index("exchanges_by_call", "exchanges")

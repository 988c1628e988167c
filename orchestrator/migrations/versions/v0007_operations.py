"""The audit log, kill switches, and views over runs."""

from __future__ import annotations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to make yet."""


def downgrade() -> None:
    """Nothing to take back."""

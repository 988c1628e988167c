"""Executors, their leases, and who drives which run."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to make yet."""


def downgrade() -> None:
    """Nothing to take back."""

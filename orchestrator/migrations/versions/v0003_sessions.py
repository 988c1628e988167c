"""The sessions of live runs, and checkpoints of them."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to make yet."""


def downgrade() -> None:
    """Nothing to take back."""

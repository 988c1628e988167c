"""Trees of runs: parents, children and contexts that are slices."""

from __future__ import annotations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to make yet."""


def downgrade() -> None:
    """Nothing to take back."""

"""Uploads under way, and references to blobs."""

from __future__ import annotations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing to make yet."""


def downgrade() -> None:
    """Nothing to take back."""

"""What the names and metadata of a context's documents take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a place for it; what is there already counts for nothing."""
    op.add_column(
        "contexts", sa.Column("words_bytes", sa.BigInteger, nullable=False, server_default="0")
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_column("contexts", "words_bytes")

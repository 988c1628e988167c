"""Calls of host tools, and what came of each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a place for them."""
    op.create_table(
        "host_tool_calls",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("request_id", sa.String(256), primary_key=True),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("root_id", sa.String(64), nullable=False),
        sa.Column("tool", sa.String(64), nullable=False),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("is_counted", sa.Boolean, nullable=False),
        sa.Column("result_json", sa.Text, nullable=True),
        sa.Column("error", sa.LargeBinary, nullable=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("host_tool_calls_by_root", "host_tool_calls", ["root_id", "tool"])
    op.create_index("host_tool_calls_by_run", "host_tool_calls", ["run_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("host_tool_calls")

"""Trees of runs: parents, children and contexts that are slices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let runs have parents, and contexts be parts of blobs."""
    op.create_table(
        "child_runs",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=False),
        sa.Column("root_id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(256), nullable=False),
        sa.Column("lineage", sa.JSON, nullable=False),
        sa.Column("tokens_reserved", sa.BigInteger, nullable=False),
        sa.Column("cost_usd_nanos_reserved", sa.BigInteger, nullable=False),
        sa.Column("sub_calls_reserved", sa.BigInteger, nullable=False),
        sa.Column("live_reserved", sa.Integer, nullable=False),
        sa.Column("is_booked", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("child_runs_by_request", "child_runs", ["tenant", "request_id"], unique=True)
    op.create_index("child_runs_by_parent", "child_runs", ["parent_id", "is_booked"])
    op.create_index("child_runs_by_root", "child_runs", ["root_id"])
    op.add_column("runs", sa.Column("parent_id", sa.String(64), nullable=True))
    takes_children = sa.Column(
        "takes_children", sa.Boolean, nullable=False, server_default=sa.true()
    )
    op.add_column("runs", takes_children)
    op.create_index("runs_by_parent", "runs", ["parent_id", "run_id"])
    for name in ("offset_bytes", "blob_bytes"):
        column = sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        op.add_column("contexts", column)
    origin = sa.Column("derived_from", sa.String(64), nullable=False, server_default="")
    op.add_column("contexts", origin)


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("contexts") as contexts:
        for name in ("offset_bytes", "blob_bytes", "derived_from"):
            contexts.drop_column(name)
    op.drop_index("runs_by_parent", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("parent_id")
        runs.drop_column("takes_children")
    op.drop_table("child_runs")

"""Calls, the exchanges that they took, and the processes that own the open ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    _create_calls()
    _create_exchanges()
    op.create_table(
        "owners",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("owners", "exchanges", "calls"):
        op.drop_table(table)


def _create_calls() -> None:
    op.create_table(
        "calls",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("run", sa.String(128), primary_key=True),
        sa.Column("request_id", sa.String(256), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("tier", sa.String(256), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
        sa.Column("exchange_id", sa.String(96), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("held_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("held_output_tokens", sa.BigInteger, nullable=False),
        sa.Column("held_cost_usd_nanos", sa.BigInteger, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("answer_key", sa.String(64)),
    )
    op.create_index("calls_by_state", "calls", ["state", "changed_us"])


def _create_exchanges() -> None:
    op.create_table(
        "exchanges",
        sa.Column("exchange_id", sa.String(96), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(256), nullable=False),
        sa.Column("tier", sa.String(256), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd_nanos", sa.BigInteger, nullable=False),
        sa.Column("is_answer", sa.Boolean, nullable=False),
        sa.Column("is_estimated", sa.Boolean, nullable=False),
    )
    op.create_index("exchanges_by_run", "exchanges", ["tenant", "run"])
    op.create_index("exchanges_by_time", "exchanges", ["ended_us"])

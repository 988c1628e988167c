"""Quotas, the accounts that they limit, and what exchanges under way hold of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "accounts",
        sa.Column("account", sa.String(512), primary_key=True),
        sa.Column("numbers", sa.LargeBinary, nullable=False),
        sa.Column("forget_us", sa.BigInteger, nullable=False),
    )
    op.create_index("accounts_by_forget", "accounts", ["forget_us"])
    op.create_table(
        "holds",
        sa.Column("hold_id", sa.String(96), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd_nanos", sa.BigInteger, nullable=False),
        sa.Column("accounts", sa.LargeBinary, nullable=False),
        sa.Column("expired_us", sa.BigInteger, nullable=False),
    )
    op.create_index("holds_by_expiry", "holds", ["expired_us"])
    _create_quotas()


def downgrade() -> None:
    """Drop them."""
    for table in ("quotas", "holds", "accounts"):
        op.drop_table(table)


def _create_quotas() -> None:
    op.create_table(
        "quotas",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("quota", sa.String(128), primary_key=True),
        sa.Column("tier", sa.String(256), nullable=False),
        sa.Column("scope", sa.Integer, nullable=False),
        sa.Column("window_us", sa.BigInteger, nullable=False),
        sa.Column("calls_max", sa.BigInteger),
        sa.Column("tokens_max", sa.BigInteger),
        sa.Column("cost_usd_nanos_max", sa.BigInteger),
        sa.Column("concurrency_max", sa.BigInteger),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
    )

"""Uploads under way, references to blobs, and what each tenant stores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; blobs that are there belong to whose contexts they are."""
    op.add_column("contexts", sa.Column("expires_us", sa.BigInteger, nullable=True))
    op.create_index("contexts_by_blob", "contexts", ["blob_key"])
    op.create_index("contexts_by_expiry", "contexts", ["expires_us"])
    op.add_column("runs", sa.Column("context_id", sa.String(64), nullable=True))
    op.create_index("runs_by_context", "runs", ["tenant", "context_id", "state"])
    _create_blobs()
    _create_uploads()
    op.create_table(
        "storage_use",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO blobs (blob_key, tenant, blake3, size_bytes) "
        "SELECT DISTINCT blob_key, tenant, blake3, size_bytes FROM contexts"
    )
    op.execute(
        "INSERT INTO storage_use (tenant, size_bytes) "
        "SELECT tenant, SUM(size_bytes) FROM blobs GROUP BY tenant"
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("storage_use", "upload_documents", "uploads", "blobs"):
        op.drop_table(table)
    op.drop_index("runs_by_context", "runs")
    op.drop_column("runs", "context_id")
    for index in ("contexts_by_expiry", "contexts_by_blob"):
        op.drop_index(index, "contexts")
    op.drop_column("contexts", "expires_us")


def _create_blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("blob_key", sa.String(128), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("blake3", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("removed_us", sa.BigInteger, nullable=True),
    )
    there = sa.text("removed_us IS NULL")
    op.create_index(
        "blobs_by_content",
        "blobs",
        ["tenant", "blake3"],
        unique=True,
        sqlite_where=there,
        postgresql_where=there,
    )
    op.create_index("blobs_removed", "blobs", ["removed_us"])


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("upload_id", sa.String(36), primary_key=True),
        sa.Column("blob_key", sa.String(128), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("kept_bytes", sa.BigInteger, nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger, nullable=False),
        sa.Column("context_id", sa.String(64), nullable=True),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
    )
    op.create_index("uploads_oldest", "uploads", ["updated_us"])
    op.create_table(
        "upload_documents",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("upload_id", sa.String(36), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
    )

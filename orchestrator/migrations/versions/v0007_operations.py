"""The audit log, kill switches, and what is known of runs that have ended, with views over it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NOW_US = {
    "sqlite": "CAST(strftime('%s', 'now') AS BIGINT) * 1000000",
    "postgresql": "CAST(extract(epoch FROM now()) * 1000000 AS BIGINT)",
}
_WEEK_US = 7 * 86_400 * 1_000_000
_HOUR_US = 3_600 * 1_000_000
_FAILED = 5
"""Run.STATE_FAILED."""
VIEWS = {
    "cost_by_user": """
        SELECT tenant, user_name, count(*) AS runs,
               CAST(sum(input_tokens + output_tokens) AS BIGINT) AS tokens,
               CAST(sum(cost_usd_nanos) AS BIGINT) AS cost_usd_nanos
        FROM run_facts WHERE depth = 0 AND ended_us >= {since_us}
        GROUP BY tenant, user_name""",
    "latency_by_context_size": """
        SELECT tenant, context_bytes_from, max(runs) AS runs,
               min(CASE WHEN place * 2 >= runs THEN took_us END) AS p50_us,
               min(CASE WHEN place * 20 >= runs * 19 THEN took_us END) AS p95_us
        FROM (
            SELECT tenant, context_bytes_from, ended_us - started_us AS took_us,
                   row_number() OVER (PARTITION BY tenant, context_bytes_from
                                      ORDER BY ended_us - started_us) AS place,
                   count(*) OVER (PARTITION BY tenant, context_bytes_from) AS runs
            FROM run_facts WHERE depth = 0 AND started_us > 0 AND ended_us >= {since_us}
        ) AS ranked
        GROUP BY tenant, context_bytes_from""",
    "errors_by_hour": """
        SELECT tenant, ended_us / {hour_us} * {hour_us} AS hour_us, count(*) AS runs,
               sum(CASE WHEN state = {failed} THEN 1 ELSE 0 END) AS failed
        FROM run_facts WHERE depth = 0 AND ended_us >= {since_us}
        GROUP BY tenant, ended_us / {hour_us} * {hour_us}""",
}
"""The three questions of those who run the service, over the last seven days."""


def upgrade() -> None:
    """Make tables and views."""
    _create_audit_log()
    _create_run_facts()
    op.create_table(
        "kill_switches",
        sa.Column("target", sa.String(160), primary_key=True),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    since_us = f"{_NOW_US[op.get_bind().dialect.name]} - {_WEEK_US}"
    for name, query in VIEWS.items():
        values = {"since_us": since_us, "hour_us": _HOUR_US, "failed": _FAILED}
        op.execute(f"CREATE VIEW {name} AS {query.format(**values)}")


def downgrade() -> None:
    """Drop them."""
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    op.drop_index("runs_to_book", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("booked")
    for table in ("kill_switches", "run_facts", "audit_log"):
        op.drop_table(table)


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entered_us", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(160), nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous_blake3", sa.String(64), nullable=False),
        sa.Column("blake3", sa.String(64), nullable=False),
    )
    op.create_index("audit_log_by_tenant", "audit_log", ["tenant", "sequence"])
    op.create_index("audit_log_by_subject", "audit_log", ["subject", "sequence"])


def _create_run_facts() -> None:
    op.create_table(
        "run_facts",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("user_name", sa.String(256), nullable=False),
        sa.Column("profile", sa.String(128), nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("error_reason", sa.String(64), nullable=False),
        sa.Column("context_bytes", sa.BigInteger, nullable=False),
        sa.Column("context_bytes_from", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=False),
        sa.Column("turns", sa.Integer, nullable=False),
        sa.Column("sub_calls", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd_nanos", sa.BigInteger, nullable=False),
    )
    op.create_index("run_facts_newest", "run_facts", ["tenant", "ended_us"])
    op.add_column("runs", sa.Column("booked", sa.Integer, nullable=False, server_default="0"))
    op.create_index("runs_to_book", "runs", ["booked", "state"])

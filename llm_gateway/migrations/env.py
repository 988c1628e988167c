"""How Alembic reaches the database: through the connection that it is handed, nothing else."""

from __future__ import annotations

from alembic import context

from llm_gateway.ledger.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

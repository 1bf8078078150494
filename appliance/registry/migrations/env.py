"""Run by Alembic. The caller brings the connection; there is no configuration file."""

from __future__ import annotations

from alembic import context

from appliance.registry.tables import Base

# SQLite cannot alter a column in place: "batch" copies the table instead.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

"""How Alembic runs a migration: in the transaction that `taskboard.database.migrate` opened."""

from alembic import context

from taskboard.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()

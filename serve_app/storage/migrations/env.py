"""What Alembic runs for an upgrade: in the transaction that `upgrade` has opened, and commits."""

from alembic import context

from serve_app.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

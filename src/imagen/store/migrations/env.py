"""How Alembic runs our migrations: on the connection that it is given."""

from alembic import context

from imagen.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
context.run_migrations()

"""Run by Alembic, on the connection from `halt.store.migrate`.

Where a developer calls `alembic`, it opens the database of the settings itself.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from halt.config.environment import load
from halt.store.database import make_engine
from halt.store.tables import metadata


def run(connection: Connection) -> None:
    """Run the migrations."""
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


shared_connection = context.config.attributes.get("connection")
if shared_connection is not None:
    run(shared_connection)
else:
    config = load()
    engine = make_engine(config.data_folder, config.database_url).execution_options(write=True)
    with engine.begin() as connection:
        run(connection)

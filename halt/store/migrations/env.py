"""Run by Alembic: at Halt's start on the connection it is given, else on the settings' database."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from halt.config.environment import load
from halt.store.database import make_engine
from halt.store.tables import metadata


def run(connection: Connection) -> None:
    """Take the steps."""
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    config = load()
    engine = make_engine(config.data_folder, config.database_url).execution_options(write=True)
    with engine.begin() as connection:
        run(connection)

"""Databases of earlier versions of Halt, with rows that the code of today has written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import MetaData, column, inspect, select, table, text

from halt.store.database import make_engine
from halt.store.migrate import MIGRATIONS
from halt.store.store import Store
from tests.support.stores import open_store


def make_earlier_database(
    folder: Path, url: str, revision: str, fill: Callable[[Store], None]
) -> None:
    """Make the tables of a revision, with the rows that `fill` adds to a store of today.

    Columns of later revisions are left out. A generation of the owner "" has none, as a program's
    had before people existed.
    """
    with ExitStack() as stack:
        today = stack.enter_context(open_store(folder / "today"))
        fill(today)
        engine = make_engine(folder, url)
        stack.callback(engine.dispose)
        config = AlembicConfig()
        config.set_main_option("script_location", str(MIGRATIONS))
        source = stack.enter_context(today.database.reading())
        known = inspect(source)
        with engine.execution_options(write=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            earlier = MetaData()
            earlier.reflect(connection)
            for earlier_table in earlier.sorted_tables:
                name = earlier_table.name
                if name.startswith(("alembic", "messages_words")) or not known.has_table(name):
                    continue
                names = {row["name"] for row in known.get_columns(name)}
                columns = [column(c.name, c.type) for c in earlier_table.columns if c.name in names]
                rows = source.execute(select(*columns).select_from(table(name)))
                if values := [dict(row) for row in rows.mappings()]:
                    connection.execute(earlier_table.insert(), values)
            connection.execute(text("UPDATE generations SET owner = NULL WHERE owner = ''"))
            if url:  # the IDs were given above
                connection.execute(
                    text(
                        "SELECT setval(pg_get_serial_sequence('messages', 'id'), max(id)) "
                        "FROM messages"
                    )
                )


def revision_of(folder: Path, url: str) -> str:
    """The revision of a database's tables."""
    engine = make_engine(folder, url)
    try:
        with engine.connect() as connection:
            return str(connection.scalar(text("SELECT version_num FROM alembic_version")))
    finally:
        engine.dispose()

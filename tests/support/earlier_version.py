"""The data folder of an earlier version of Halt, in which each browser was an owner."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import text

from halt.config.data_dir import make_folder
from halt.store.database import make_engine
from halt.store.migrate import MIGRATIONS

CONVERSATION = """
    INSERT INTO conversations (id, owner, title, titled_by, model, first_id, created_at, updated_at)
    VALUES (:conversation, :owner, :title, 'words', '', :message, 1000, 1000)
"""
MESSAGE = """
    INSERT INTO messages
      (id, conversation_id, depth, role, asked_model, model, stream_id, state, picked, created_at,
       content)
    VALUES (:message, :conversation, 0, 'user', '', '', '', 'done', false, 1000, :title)
"""


def write_earlier_version(folder: Path, conversations: dict[str, str]) -> None:
    """Write the database of an earlier version: a conversation (the value) of each browser."""
    make_folder(folder)
    engine = make_engine(folder, "")
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for number, (browser, conversation_id) in enumerate(conversations.items(), start=1):
            values = {
                "conversation": conversation_id,
                "owner": browser,
                "title": f"Talk of {browser}",
                "message": number,
            }
            connection.execute(text(CONVERSATION), values)
            connection.execute(text(MESSAGE), values)
    engine.dispose()

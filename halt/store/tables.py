"""The tables of the store. The steps that make them are in `halt/store/migrations`.

A conversation is a tree of messages: `parent_id` leads up; `chosen_id`, and `first_id` for the
root, lead down the path that is shown. `generations` has a row for each stream; while it runs its
events are in `chunks`, afterwards they are in `events`, compressed.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

#: SQLite counts its rows with plain INTEGER only.
RowId = BigInteger().with_variant(Integer, "sqlite")

#: The last of the steps, which leads to these tables.
REVISION = "0002"

metadata = MetaData()

conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("titled_by", Text, nullable=False),  # words, model, user
    Column("model", Text, nullable=False),
    Column("system_prompt", Text),
    Column("temperature", Double),
    Column("max_tokens", Integer),
    Column("first_id", BigInteger),  # the message that the path begins with
    Column("created_at", Double, nullable=False),  # all times: seconds since 1970
    Column("updated_at", Double, nullable=False),
    Column("deleted_at", Double),
    Index("conversations_listed", "owner", "updated_at", "id"),
    Index(
        "conversations_deleted",
        "deleted_at",
        sqlite_where=text("deleted_at IS NOT NULL"),
        postgresql_where=text("deleted_at IS NOT NULL"),
    ),
    Index(
        "conversations_empty",
        "updated_at",
        sqlite_where=text("first_id IS NULL"),
        postgresql_where=text("first_id IS NULL"),
    ),
)

messages = Table(
    "messages",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("conversation_id", Text, ForeignKey("conversations.id"), nullable=False),
    Column("parent_id", BigInteger),
    Column("chosen_id", BigInteger),  # the successor that the conversation goes on with
    Column("depth", Integer, nullable=False),
    Column("role", Text, nullable=False),  # user, assistant
    Column("asked_model", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("stream_id", Text, nullable=False),  # what writes it, or wrote last on it
    Column("state", Text, nullable=False),  # halt.store.conversation.State
    Column("rivals", BigInteger),  # the same number: asked for together
    Column("picked", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended", LargeBinary),  # the terminal event, JSON
    Column("folds", LargeBinary),  # JSON
    Column("trigrams", Text),  # what is indexed instead of the content: see `halt.store.snippets`
    Column("content", Text, nullable=False),
    Index("messages_tree", "conversation_id", "parent_id"),
    Index(
        "messages_running",
        "conversation_id",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,  # no ID is used twice: pages remember them
)

generations = Table(
    "generations",
    metadata,
    Column("id", Text, primary_key=True),  # the stream ID
    Column("owner", Text),
    Column("conversation_id", Text),
    Column("message_id", BigInteger),
    Column("worker", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("asked_model", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prefix_chars", Integer, nullable=False),  # of the message, before this generation
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("last_seq", Integer, nullable=False),
    Column("seen", Integer),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("usage", LargeBinary),  # what the provider reported, JSON
    Column("ended", LargeBinary),  # the terminal event, JSON
    Column("events", LargeBinary),  # all events, compressed; of ended ones, for a time
    Index("generations_conversation", "conversation_id"),
    Index("generations_message", "message_id"),
    Index(
        "generations_running",
        "worker",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "generations_kept",
        "ended_at",
        sqlite_where=text("events IS NOT NULL"),
        postgresql_where=text("events IS NOT NULL"),
    ),
)

chunks = Table(
    "chunks",
    metadata,
    Column("generation_id", Text, primary_key=True),
    Column("first_seq", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),  # [[milliseconds, event], ...], JSON
)


def storable(said: str) -> str:
    """A text as every database takes it: no NUL, and no half of a character."""
    return said.encode("utf-8", "replace").decode().replace("\0", "\ufffd")

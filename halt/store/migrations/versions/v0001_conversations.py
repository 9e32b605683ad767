"""Create the tables of conversations, messages and generations, and the index of words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

#: A contentless index of each message's words and its owner, so that a search reads no messages of
#: other owners.
SQLITE_SEARCH = (
    "CREATE VIRTUAL TABLE messages_words USING fts5("
    "content, owner, content='', prefix='1 2 3', tokenize='unicode61 remove_diacritics 2')",
    """
    CREATE TRIGGER messages_words_insert AFTER INSERT ON messages WHEN new.content <> '' BEGIN
      INSERT INTO messages_words (rowid, content, owner) VALUES (new.id, new.content,
        (SELECT owner FROM conversations WHERE id = new.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_delete AFTER DELETE ON messages WHEN old.content <> '' BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        VALUES ('delete', old.id, old.content,
          (SELECT owner FROM conversations WHERE id = old.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_update AFTER UPDATE OF content ON messages
    WHEN new.content <> old.content BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        SELECT 'delete', old.id, old.content, owner FROM conversations
        WHERE id = old.conversation_id AND old.content <> '';
      INSERT INTO messages_words (rowid, content, owner)
        SELECT new.id, new.content, owner FROM conversations
        WHERE id = new.conversation_id AND new.content <> '';
    END
    """,
)

#: The same for PostgreSQL. It rejects more than a megabyte of words, so long texts are cut.
POSTGRES_SEARCH = (
    "ALTER TABLE messages ADD COLUMN words tsvector",
    """
    CREATE FUNCTION messages_words() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      NEW.words := CASE WHEN NEW.content <> '' THEN
        to_tsvector('simple', left(NEW.content, 200000)) || array_to_tsvector(ARRAY[
          'owner ' || (SELECT owner FROM conversations WHERE id = NEW.conversation_id)])
      END;
      RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER messages_words BEFORE INSERT OR UPDATE OF content ON messages "
    "FOR EACH ROW EXECUTE FUNCTION messages_words()",
    "CREATE INDEX messages_words ON messages USING gin (words)",
)


def upgrade() -> None:
    """Create all tables and indexes."""
    sqlite = op.get_bind().dialect.name == "sqlite"

    def where(name: str, table: str, columns: list[str], condition: str) -> None:
        part = sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=part, postgresql_where=part)

    op.create_table(
        "conversations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("titled_by", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("system_prompt", sa.Text),
        sa.Column("temperature", sa.Double),
        sa.Column("max_tokens", sa.Integer),
        sa.Column("first_id", sa.BigInteger),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("deleted_at", sa.Double),
    )
    op.create_index("conversations_listed", "conversations", ["owner", "updated_at", "id"])
    where("conversations_deleted", "conversations", ["deleted_at"], "deleted_at IS NOT NULL")
    where("conversations_empty", "conversations", ["updated_at"], "first_id IS NULL")
    op.create_table(
        "messages",
        sa.Column("id", ROW_ID, primary_key=True),
        sa.Column("conversation_id", sa.Text, sa.ForeignKey("conversations.id"), nullable=False),
        sa.Column("parent_id", sa.BigInteger),
        sa.Column("chosen_id", sa.BigInteger),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("asked_model", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("stream_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("rivals", sa.BigInteger),
        sa.Column("picked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended", sa.LargeBinary),
        sa.Column("folds", sa.LargeBinary),
        sa.Column("content", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("messages_tree", "messages", ["conversation_id", "parent_id"])
    where("messages_running", "messages", ["conversation_id"], "state = 'running'")
    op.create_table(
        "generations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text),
        sa.Column("conversation_id", sa.Text),
        sa.Column("message_id", sa.BigInteger),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("asked_model", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("prefix_chars", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("seen", sa.Integer),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("usage", sa.LargeBinary),
        sa.Column("ended", sa.LargeBinary),
        sa.Column("events", sa.LargeBinary),
    )
    op.create_index("generations_conversation", "generations", ["conversation_id"])
    op.create_index("generations_message", "generations", ["message_id"])
    where("generations_running", "generations", ["worker"], "state = 'running'")
    where("generations_kept", "generations", ["ended_at"], "events IS NOT NULL")
    op.create_table(
        "chunks",
        sa.Column("generation_id", sa.Text, primary_key=True),
        sa.Column("first_seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    for statement in SQLITE_SEARCH if sqlite else POSTGRES_SEARCH:
        op.execute(statement)

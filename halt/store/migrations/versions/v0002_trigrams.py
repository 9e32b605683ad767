"""Index texts without spaces between words by trigrams: see `halt.store.search`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from halt.store.search import trigrams

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STEP = 1000  # messages that are read together

SQLITE_SEARCH = (
    "DROP TRIGGER messages_words_insert",
    "DROP TRIGGER messages_words_delete",
    "DROP TRIGGER messages_words_update",
    """
    CREATE TRIGGER messages_words_insert AFTER INSERT ON messages WHEN new.content <> '' BEGIN
      INSERT INTO messages_words (rowid, content, owner)
        VALUES (new.id, coalesce(new.trigrams, new.content),
          (SELECT owner FROM conversations WHERE id = new.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_delete AFTER DELETE ON messages WHEN old.content <> '' BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        VALUES ('delete', old.id, coalesce(old.trigrams, old.content),
          (SELECT owner FROM conversations WHERE id = old.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_update AFTER UPDATE OF content, trigrams ON messages
    WHEN coalesce(new.trigrams, new.content) <> coalesce(old.trigrams, old.content) BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        SELECT 'delete', old.id, coalesce(old.trigrams, old.content), owner FROM conversations
        WHERE id = old.conversation_id AND old.content <> '';
      INSERT INTO messages_words (rowid, content, owner)
        SELECT new.id, coalesce(new.trigrams, new.content), owner FROM conversations
        WHERE id = new.conversation_id AND new.content <> '';
    END
    """,
)

#: The column `trigrams` is emptied on PostgreSQL, because `words` holds the indexed words.
POSTGRES_SEARCH = (
    "DROP TRIGGER messages_words ON messages",
    """
    CREATE OR REPLACE FUNCTION messages_words() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      NEW.words := CASE WHEN NEW.content <> '' THEN
        to_tsvector('simple', left(coalesce(NEW.trigrams, NEW.content), 200000))
        || array_to_tsvector(ARRAY[
          'owner ' || (SELECT owner FROM conversations WHERE id = NEW.conversation_id)])
      END;
      NEW.trigrams := NULL;
      RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER messages_words BEFORE INSERT OR UPDATE OF content, trigrams ON messages "
    "FOR EACH ROW EXECUTE FUNCTION messages_words()",
)


def upgrade() -> None:
    """Index again the messages that contain such texts."""
    connection = op.get_bind()
    op.add_column("messages", sa.Column("trigrams", sa.Text))
    for statement in SQLITE_SEARCH if connection.dialect.name == "sqlite" else POSTGRES_SEARCH:
        op.execute(statement)
    query = sa.text("SELECT id, content FROM messages WHERE id > :last ORDER BY id LIMIT :step")
    change = sa.text("UPDATE messages SET trigrams = :trigrams WHERE id = :id")
    last = 0
    while rows := connection.execute(query, {"last": last, "step": STEP}).all():
        last = rows[-1].id
        values = [{"id": row.id, "trigrams": trigrams(row.content)} for row in rows]
        if changes := [value for value in values if value["trigrams"] is not None]:
            connection.execute(change, changes)

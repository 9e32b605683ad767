"""People own conversations and streams: the tables of people, and streams with a key of two parts.

Owners were the sessions of browsers, or nobody (a program). The former get a row of the mode
"browser", so that `halt.people.adoption` can give what they own to a person; streams of nobody
become those of the person of the mode `mine`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SQLITE_SEARCH = (
    "DROP TRIGGER messages_words_insert",
    "DROP TRIGGER messages_words_delete",
    "DROP TRIGGER messages_words_update",
    """
    CREATE TRIGGER messages_words_insert AFTER INSERT ON messages WHEN new.content <> '' BEGIN
      INSERT INTO messages_words (rowid, content, owner)
        VALUES (new.id, coalesce(new.trigrams, new.content),
          (SELECT indexed_as FROM conversations WHERE id = new.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_delete AFTER DELETE ON messages WHEN old.content <> '' BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        VALUES ('delete', old.id, coalesce(old.trigrams, old.content),
          (SELECT indexed_as FROM conversations WHERE id = old.conversation_id));
    END
    """,
    """
    CREATE TRIGGER messages_words_update AFTER UPDATE OF content, trigrams ON messages
    WHEN coalesce(new.trigrams, new.content) <> coalesce(old.trigrams, old.content) BEGIN
      INSERT INTO messages_words (messages_words, rowid, content, owner)
        SELECT 'delete', old.id, coalesce(old.trigrams, old.content), indexed_as FROM conversations
        WHERE id = old.conversation_id AND old.content <> '';
      INSERT INTO messages_words (rowid, content, owner)
        SELECT new.id, coalesce(new.trigrams, new.content), indexed_as FROM conversations
        WHERE id = new.conversation_id AND new.content <> '';
    END
    """,
)

POSTGRES_SEARCH = (
    """
    CREATE OR REPLACE FUNCTION messages_words() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      NEW.words := CASE WHEN NEW.content <> '' THEN
        to_tsvector('simple', left(coalesce(NEW.trigrams, NEW.content), 200000))
        || array_to_tsvector(ARRAY[
          'owner ' || (SELECT indexed_as FROM conversations WHERE id = NEW.conversation_id)])
      END;
      NEW.trigrams := NULL;
      RETURN NEW;
    END $$
    """,
)

#: SQLite cannot change a primary key, so both tables are copied: 1 GB in about 10 s.
SQLITE_STREAMS = (
    "ALTER TABLE chunks RENAME TO chunks_before",
    "ALTER TABLE generations RENAME TO generations_before",
    "DROP INDEX generations_conversation",
    "DROP INDEX generations_message",
    "DROP INDEX generations_running",
    "DROP INDEX generations_kept",
    """
    CREATE TABLE generations (
      owner TEXT NOT NULL, id TEXT NOT NULL, conversation_id TEXT, message_id BIGINT,
      worker TEXT NOT NULL, state TEXT NOT NULL, asked_model TEXT NOT NULL, model TEXT NOT NULL,
      prefix_chars INTEGER NOT NULL, started_at DOUBLE NOT NULL, ended_at DOUBLE,
      last_seq INTEGER NOT NULL, seen INTEGER, prompt_tokens INTEGER NOT NULL,
      completion_tokens INTEGER NOT NULL, estimated BOOLEAN NOT NULL, usage BLOB, ended BLOB,
      events BLOB, PRIMARY KEY (owner, id))
    """,
    """
    INSERT INTO generations SELECT coalesce(owner, 'mine'), id, conversation_id, message_id,
      worker, state, asked_model, model, prefix_chars, started_at, ended_at, last_seq, seen,
      prompt_tokens, completion_tokens, estimated, usage, ended, events FROM generations_before
    """,
    """
    CREATE TABLE chunks (
      owner TEXT NOT NULL, generation_id TEXT NOT NULL, first_seq INTEGER NOT NULL,
      payload BLOB NOT NULL, PRIMARY KEY (owner, generation_id, first_seq))
    """,
    """
    INSERT INTO chunks SELECT generations.owner, generation_id, first_seq, payload
      FROM chunks_before JOIN generations ON generations.id = generation_id
    """,
    "DROP TABLE chunks_before",
    "DROP TABLE generations_before",
    "CREATE INDEX generations_conversation ON generations (conversation_id)",
    "CREATE INDEX generations_message ON generations (message_id)",
    "CREATE INDEX generations_running ON generations (worker) WHERE state = 'running'",
    "CREATE INDEX generations_kept ON generations (ended_at) WHERE events IS NOT NULL",
)

POSTGRES_STREAMS = (
    "UPDATE generations SET owner = 'mine' WHERE owner IS NULL",
    "ALTER TABLE generations ALTER COLUMN owner SET NOT NULL",
    "ALTER TABLE chunks ADD COLUMN owner TEXT",
    "UPDATE chunks SET owner = generations.owner FROM generations WHERE id = generation_id",
    "DELETE FROM chunks WHERE owner IS NULL",
    "ALTER TABLE chunks DROP CONSTRAINT chunks_pkey, "
    "ADD PRIMARY KEY (owner, generation_id, first_seq)",
    "ALTER TABLE generations DROP CONSTRAINT generations_pkey, ADD PRIMARY KEY (owner, id)",
)

OWNERS = """
    INSERT INTO people (id, mode, issuer, subject, name, is_admin, created_at)
    SELECT owner, 'browser', '', owner, '', false, min(at) FROM (
      SELECT owner, min(created_at) AS at FROM conversations GROUP BY owner
      UNION ALL SELECT owner, min(updated_at) FROM named_prompts GROUP BY owner
      UNION ALL SELECT owner, min(updated_at) FROM presets GROUP BY owner
    ) AS owners GROUP BY owner
"""


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "people",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("is_admin", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("disabled_at", sa.Double),
        sa.Column("removed_at", sa.Double),
    )
    op.create_table(
        "accounts",
        sa.Column("person_id", sa.Text, sa.ForeignKey("people.id"), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("password", sa.Text),
        sa.Column("link_digest", sa.Text, unique=True),
        sa.Column("link_until", sa.Double),
    )
    op.create_table(
        "sign_ins",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("person_id", sa.Text, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("id_token", sa.Text),
    )
    op.create_index("sign_ins_person", "sign_ins", ["person_id"])
    op.create_index("sign_ins_until", "sign_ins", ["until"])
    op.create_table(
        "api_tokens",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("person_id", sa.Text, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_index("api_tokens_person", "api_tokens", ["person_id"])
    op.execute(OWNERS)
    op.add_column(
        "conversations", sa.Column("indexed_as", sa.Text, nullable=False, server_default="")
    )
    op.execute("UPDATE conversations SET indexed_as = owner")
    op.create_index("conversations_indexed", "conversations", ["owner", "indexed_as"])
    for statement in (
        (SQLITE_SEARCH + SQLITE_STREAMS) if sqlite else (POSTGRES_SEARCH + POSTGRES_STREAMS)
    ):
        op.execute(statement)

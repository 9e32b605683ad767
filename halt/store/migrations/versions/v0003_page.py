"""Pins, archive, named prompts, presets of settings, answers that the user edited, and searches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("conversations", sa.Column("pinned_at", sa.Double))
    op.add_column("conversations", sa.Column("archived_at", sa.Double))
    op.drop_index("conversations_listed", "conversations")
    by_use = ["owner", "updated_at", "id"]
    for name, columns, condition in (
        ("conversations_listed", by_use, "archived_at IS NULL"),
        ("conversations_archived", by_use, "archived_at IS NOT NULL"),
        ("conversations_pinned", ["owner", "pinned_at"], "pinned_at IS NOT NULL"),
    ):
        part = sa.text(condition)
        op.create_index(name, "conversations", columns, sqlite_where=part, postgresql_where=part)
    op.add_column("conversations", sa.Column("prompt_name", sa.Text))
    op.add_column("conversations", sa.Column("top_p", sa.Double))
    op.add_column(
        "messages", sa.Column("edited", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_index("messages_newest", "messages", ["created_at", "id"])
    op.create_table(
        "named_prompts",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.create_table(
        "presets",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("temperature", sa.Double),
        sa.Column("top_p", sa.Double),
        sa.Column("max_tokens", sa.Integer),
        sa.Column("updated_at", sa.Double, nullable=False),
    )

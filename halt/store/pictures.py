"""Puts pictures that are kept as files in the place of their data, in answers that have ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select, update

from halt.core.steps import Step
from halt.store.database import Database
from halt.store.files import attach, attached, detach
from halt.store.models import UnknownConversation
from halt.store.rows import find
from halt.store.search import trigrams
from halt.store.tables import conversations, generations, messages


@dataclass(frozen=True)
class EndedAnswer:
    """An answer that has ended, with the data of its pictures or with the pictures."""

    message_id: int
    conversation_id: str
    stream_id: str
    text: str
    steps: tuple[Step, ...]
    pictures: Mapping[str, str] = field(default_factory=dict)  # its files: names by their hashes
    #: Characters of the text before each Continue, by its stream ID.
    prefixes: Mapping[str, int] = field(default_factory=dict)


class Pictures:
    """The pictures of answers. A call that raises StoreUnavailable has changed nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def place(
        self, owner: str, stream_id: str, message_id: int | None = None
    ) -> tuple[str, int] | None:
        """The IDs of the conversation and the message of an answer; None if there is none.

        `message_id`: of the answer, where it is known; there may be no generation with that ID.
        """
        query = (
            select(messages.c.conversation_id, messages.c.id)
            .join(conversations, conversations.c.id == messages.c.conversation_id)
            .where(messages.c.stream_id == stream_id, conversations.c.owner == owner)
        )
        if message_id is None:
            query = query.where(
                messages.c.id.in_(
                    select(generations.c.message_id).where(
                        generations.c.owner == owner, generations.c.id == stream_id
                    )
                )
            )
        else:
            query = query.where(messages.c.id == message_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row.conversation_id, row.id)

    def get(self, owner: str, message_id: int) -> EndedAnswer | None:
        """An answer of the person; None if there is none, or while it is written."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(
                    messages.c.conversation_id,
                    messages.c.stream_id,
                    messages.c.content,
                    messages.c.steps,
                )
                .join(conversations, conversations.c.id == messages.c.conversation_id)
                .where(
                    messages.c.id == message_id,
                    messages.c.role == "assistant",
                    messages.c.state != "running",
                    conversations.c.owner == owner,
                )
            ).one_or_none()
            if row is None:
                return None
            files = attached(connection, [message_id]).get(message_id, ())
            prefixes = connection.execute(
                select(generations.c.id, generations.c.prefix_chars).where(
                    generations.c.message_id == message_id, generations.c.prefix_chars > 0
                )
            )
            return EndedAnswer(
                message_id,
                row.conversation_id,
                row.stream_id,
                row.content,
                row.steps,
                {image.file.hash: image.name for image in files},
                {prefix.id: prefix.prefix_chars for prefix in prefixes},
            )

    def replace(self, owner: str, before: EndedAnswer, after: EndedAnswer) -> bool:
        """Store an answer with its pictures. False, and nothing is changed: it is another by now.

        It is so if it was removed or is being continued, if it was continued since `get`, and if
        another worker came first. Raises UnknownFile if a picture was removed meanwhile.
        """
        with self._database.writing() as connection:
            try:  # also in one that was deleted: the deletion can be undone
                find(connection, before.conversation_id, owner, lock=True, deleted=True)
            except UnknownConversation:
                return False
            is_same = (
                messages.c.id == before.message_id,
                messages.c.conversation_id == before.conversation_id,
                messages.c.stream_id == before.stream_id,
                messages.c.state != "running",
                func.length(messages.c.content) == len(before.text),
            )
            change = update(messages).where(*is_same)
            values = {
                "content": after.text,
                "trigrams": trigrams(after.text),
                "steps": after.steps or None,
            }
            if not connection.execute(change.values(values)).rowcount:
                return False
            detach(connection, [before.message_id], time.time())
            pictures: Sequence[tuple[str, str]] = list(after.pictures.items())
            attach(connection, owner, before.message_id, pictures)
            for stream_id, characters in after.prefixes.items():
                connection.execute(
                    update(generations)
                    .where(
                        generations.c.message_id == before.message_id,
                        generations.c.id == stream_id,
                    )
                    .values(prefix_chars=characters)
                )
            return True

"""The turns of conversations: prompts and answers that are added, taken back, chosen, discarded.

Each method is one transaction, and has the conversation to itself until it is done: SQLite lets one
writer in at a time, PostgreSQL locks the conversation's row. What generations write is in
`halt.store.generations`, how a conversation's messages hang together in `halt.store.tree`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from halt.core.steps import Step
from halt.errors import RequestError, StreamInUse
from halt.store import tree
from halt.store.database import Database, upsert
from halt.store.models import MOVED, WINDOW, Conversation, Moved, UnknownConversation, state_of
from halt.store.rows import changed, find, lock, made, message, refuse_while_running
from halt.store.search import trigrams
from halt.store.tables import chunks, generations, messages
from halt.store.title_text import first_words


class Turns:
    """Changes of conversations' paths. Each call raises StoreUnavailable, and then did nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- asking -----------------------------------------------------------------------------------

    def add_prompt(
        self,
        conversation_id: str,
        owner: str,
        prompt: str,
        answers: Sequence[tuple[str, str]],
        *,
        worker: str,
        edit_of: int | None = None,
        after: int | None = None,
    ) -> Conversation:
        """Add a prompt at the end of the path; makes the conversation if needed.

        `answers` are the streams that will answer it, each with the model asked for. `edit_of`
        names a prompt of the conversation which this one is another version of. `after` names
        the prompt that is the path's last one as far as the asker knows, 0 where there is none.
        Returns the conversation with this exchange alone. Raises Busy while another answer is
        being written, Moved where `after` is wrong, StreamInUse, UnknownConversation for another
        owner's.
        """
        with self._database.writing() as connection:
            row = made(connection, conversation_id, owner)
            refuse_while_running(connection, conversation_id)
            if edit_of is None:
                path = tree.path(connection, row)
                if after is not None and after != (_last_prompt(path) or 0):
                    raise Moved(MOVED)
                parent_id = _settle(connection, row, path)
            else:
                parent_id = message(connection, row, edit_of, "user").parent_id
                if parent_id is not None:
                    _lead(connection, row, parent_id)
            prompt_id = _add(connection, row, parent_id, "user", prompt, state="done")
            _ask(connection, row, prompt_id, answers, worker)
            values: dict[str, Any] = {"model": answers[0][1], "updated_at": time.time()}
            if parent_id is None and row.titled_by == "words":
                values["title"] = first_words(prompt)
            return changed(connection, row, values)

    def regenerate(
        self,
        conversation_id: str,
        owner: str,
        stream_id: str,
        model: str = "",
        *,
        worker: str,
        prompt_id: int | None = None,
    ) -> Conversation:
        """Answer a prompt once more, the last one where none is given; the path then ends there.

        Returns the conversation with this exchange alone. Raises Busy, StreamInUse,
        UnknownConversation (also when there is no prompt).
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            if prompt_id is None:
                prompt_id = _last_prompt(tree.path(connection, row))
            if prompt_id is None:
                raise UnknownConversation("There is nothing to answer again.")
            prompt = message(connection, row, prompt_id, "user")
            _lead(connection, row, prompt.id)
            _ask(connection, row, prompt.id, [(stream_id, model)], worker)
            return changed(connection, row, {"model": model, "updated_at": time.time()})

    def continue_answer(
        self, conversation_id: str, owner: str, answer_id: int, stream_id: str, *, worker: str
    ) -> Conversation:
        """Go on with the path's last answer, in the same message, by a new stream.

        The exchange's `prefix` is what there was. Returns the conversation with this exchange
        alone. Raises Busy, StreamInUse, UnknownConversation (also for an answer that is not the
        last one, or holds no text).
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            answer = message(connection, row, answer_id, "assistant")
            if _followed(connection, answer) or not answer.content:
                raise UnknownConversation("There is no such answer to go on with.")
            _lead(connection, row, answer.id)
            connection.execute(
                update(messages)
                .where(messages.c.id == answer.id)
                .values(state="running", stream_id=stream_id, folds=_renumbered(answer.folds))
            )
            prefix = len(answer.content)
            _begin(connection, row, answer.id, stream_id, answer.asked_model, worker, prefix)
            return changed(connection, row, {"updated_at": time.time()})

    def cancel_start(self, conversation_id: str, stream_id: str) -> None:
        """As if this stream, which has not begun, had never been asked for, nor its rivals."""
        with self._database.writing() as connection:
            lock(connection, [conversation_id])
            asked = connection.execute(
                select(generations).where(
                    generations.c.id == stream_id,
                    generations.c.conversation_id == conversation_id,
                    generations.c.state == "running",
                )
            ).one_or_none()
            if asked is None:
                return
            answer = connection.execute(
                select(messages).where(messages.c.id == asked.message_id)
            ).one()
            if asked.prefix_chars:
                _restore(connection, answer, stream_id)
                gone = [stream_id]
            else:
                parent_id = answer.parent_id
                answers = tree.versions(connection, conversation_id, parent_id, "assistant")
                ids = [each.id for each in tree.together(answer, answers)]
                gone = list(
                    connection.scalars(select(messages.c.stream_id).where(messages.c.id.in_(ids)))
                )
                tree.remove(connection, conversation_id, ids)
            connection.execute(delete(chunks).where(chunks.c.generation_id.in_(gone)))
            connection.execute(delete(generations).where(generations.c.id.in_(gone)))

    # --- moving -----------------------------------------------------------------------------------

    def show(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        """Let the path lead through this message: another version of it, or one that was found.

        Returns the window around it. Raises Busy, UnknownConversation.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            message(connection, row, message_id)
            _lead(connection, row, message_id)
            row = find(connection, conversation_id, owner)
            return tree.window(connection, row, around=message_id, limit=WINDOW)

    def select(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Go on with this answer of the last prompt's, and with its model.

        Returns the conversation with this exchange alone. Raises UnknownConversation, Busy.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            last = tree.window(connection, row, limit=1).exchanges
            candidates = last[0].candidates if last and last[0].alternatives else ()
            chosen = next((each for each in candidates if each.stream_id == stream_id), None)
            if chosen is None:
                raise UnknownConversation("There is no such answer to go on with.")
            refuse_while_running(connection, conversation_id)
            _lead(connection, row, chosen.answer_id)
            return changed(connection, row, {"model": chosen.requested_model})

    def discard(self, conversation_id: str, owner: str, answer_id: int) -> str | None:
        """Remove an answer that nothing follows.

        Another version is shown instead (None); where there is none the prompt goes too, and its
        text is returned. Raises Busy, UnknownConversation, RequestError.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            answer = message(connection, row, answer_id, "assistant")
            if _followed(connection, answer):
                raise RequestError(
                    "More was said after this answer; only one that nothing follows can be "
                    "discarded.",
                    field="answer",
                )
            return tree.remove(connection, row.id, [answer.id])


def _ask(
    connection: Connection,
    row: Row[Any],
    prompt_id: int,
    answers: Sequence[tuple[str, str]],
    worker: str,
) -> None:
    """Add answers to a prompt, to be written by these streams, and show the first one."""
    first: int | None = None
    for stream_id, asked in answers:
        answer_id = _add(
            connection,
            row,
            prompt_id,
            "assistant",
            "",
            state="running",
            asked_model=asked,
            stream_id=stream_id,
            rivals=first,
            chosen=first is None,
        )
        first = first or answer_id
        _begin(connection, row, answer_id, stream_id, asked, worker)
    if len(answers) > 1:
        connection.execute(update(messages).where(messages.c.id == first).values(rivals=first))


def _begin(
    connection: Connection,
    row: Row[Any],
    answer_id: int,
    stream_id: str,
    asked: str,
    worker: str,
    prefix_chars: int = 0,
) -> None:
    """Write down that this stream begins. Raises StreamInUse."""
    values = {
        "id": stream_id,
        "owner": row.owner,
        "conversation_id": row.id,
        "message_id": answer_id,
        "worker": worker,
        "asked_model": asked,
        "prefix_chars": prefix_chars,
        "started_at": time.time(),
    }
    added = upsert(connection, generations).values(values).on_conflict_do_nothing()
    if connection.scalar(added.returning(generations.c.id)) is None:
        raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")


def _followed(connection: Connection, answer: Row[Any]) -> bool:
    """More was said after this answer."""
    return bool(tree.versions(connection, answer.conversation_id, answer.id, "user"))


def _last_prompt(path: Sequence[Row[Any]]) -> int | None:
    """The last prompt of a path."""
    return next((int(each.id) for each in reversed(path) if each.role == "user"), None)


def _settle(connection: Connection, row: Row[Any], path: Sequence[Row[Any]]) -> int | None:
    """What the next prompt follows: of the path's last prompt the answer that is gone on with."""
    if not path or path[-1].role == "user":
        return path[-1].id if path else None
    last = path[-1]
    answers = tree.versions(connection, row.id, last.parent_id, "assistant")
    told = tree.answer_for_model(next(each for each in answers if each.id == last.id), answers)
    if told != last.id:
        tree.choose(connection, row.id, last.parent_id, told)
    return told


def _lead(connection: Connection, row: Row[Any], message_id: int) -> None:
    """Let the path lead through this message; of rivals on its way, each is picked."""
    up = (
        select(messages.c.id, messages.c.parent_id)
        .where(messages.c.id == message_id)
        .cte("up", recursive=True)
    )
    above = messages.alias("above")
    up = up.union_all(select(above.c.id, above.c.parent_id).where(above.c.id == up.c.parent_id))
    way = connection.execute(
        select(messages.c.id, messages.c.parent_id, messages.c.rivals, messages.c.picked)
        .select_from(up.join(messages, messages.c.id == up.c.id))
        .order_by(messages.c.depth)
    ).all()
    chosen = {each.id for each in tree.path(connection, row)}
    for each in way:
        if each.id not in chosen:
            tree.choose(connection, row.id, each.parent_id, each.id)
        if each.rivals is not None and not each.picked:
            connection.execute(
                update(messages)
                .where(messages.c.conversation_id == row.id, messages.c.rivals == each.rivals)
                .values(picked=messages.c.id == each.id)
            )


_ADD = (
    insert(messages)
    .values(
        depth=select(func.coalesce(func.max(messages.c.depth) + 1, 0))
        .where(messages.c.id == bindparam("above"))
        .scalar_subquery()
    )
    .returning(messages.c.id)
)


def _add(
    connection: Connection,
    row: Row[Any],
    parent_id: int | None,
    role: str,
    content: str,
    *,
    chosen: bool = True,
    **values: Any,
) -> int:
    """Add a message, and let the path go on with it."""
    values |= {"conversation_id": row.id, "parent_id": parent_id, "above": parent_id, "role": role}
    values |= {"content": content, "trigrams": trigrams(content)}
    message_id: int = connection.execute(_ADD, values).scalar_one()
    if chosen:
        tree.choose(connection, row.id, parent_id, message_id)
    return message_id


def _restore(connection: Connection, answer: Row[Any], stream_id: str) -> None:
    """Let an answer be as it was before this stream was to go on with it."""
    before = connection.scalar(
        select(generations.c.id)
        .where(generations.c.message_id == answer.id, generations.c.id != stream_id)
        .order_by(generations.c.started_at.desc())
        .limit(1)
    )
    connection.execute(
        update(messages)
        .where(messages.c.id == answer.id)
        .values(
            state=state_of(tree.end_of(answer), answer.content, answer.folds),
            stream_id=before or secrets.token_urlsafe(16),
        )
    )


def _renumbered(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps of a message that another generation goes on with: no number is used twice."""
    return tuple(replace(each, number=n - len(steps)) for n, each in enumerate(steps))

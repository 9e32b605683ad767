"""Changes conversations: adds prompts and answers, edits answers, selects versions, discards.

Each method is one transaction with exclusive access to the conversation: SQLite admits one writer
at a time, on PostgreSQL the transaction locks the conversation's row. `halt.store.generations`
writes the answers themselves; `halt.store.tree` reads and changes the tree of messages.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from halt.core.events import Done
from halt.core.metrics import NO_FIGURES
from halt.core.steps import KINDS_BELOW, Step
from halt.core.stream_key import StreamKey
from halt.errors import RequestError, StreamInUse
from halt.store import tree
from halt.store.database import Database, upsert
from halt.store.files import attach, attached
from halt.store.models import MOVED, WINDOW, Conversation, Moved, UnknownConversation, state_of
from halt.store.rows import (
    change,
    changed,
    find,
    find_or_create,
    lock,
    message,
    refuse_while_running,
)
from halt.store.search import trigrams
from halt.store.tables import chunks, generations, messages
from halt.store.title_text import first_words


class Turns:
    """Changes of conversations. A call that raises StoreUnavailable has changed nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- starting answers -------------------------------------------------------------------------

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
        files: Sequence[tuple[str, str]] = (),
    ) -> Conversation:
        """Add a prompt at the end of the path; create the conversation if it does not exist.

        `answers` holds a (stream ID, requested model) for each answer. `edit_of` is the ID of a
        prompt of which the new one is another version. `after` is the ID of the prompt that the
        client takes for the last one, 0 for none. `files`: (hash, name) of the prompt's files.
        Returns the conversation with the new exchange alone. Raises Busy while an answer is being
        written, Moved if `after` is not the last prompt, StreamInUse, UnknownFile,
        UnknownConversation for a conversation of another owner.
        """
        with self._database.writing() as connection:
            row = find_or_create(connection, conversation_id, owner)
            refuse_while_running(connection, conversation_id)
            if edit_of is None:
                path = tree.path(connection, row)
                if after is not None and after != (_last_prompt(path) or 0):
                    raise Moved(MOVED)
                parent_id = _select_parent(connection, row, path)
            else:
                parent_id = message(connection, row, edit_of, "user").parent_id
                if parent_id is not None:
                    _select_path(connection, row, parent_id)
            prompt_id = _add(connection, row, parent_id, "user", prompt, state="done")
            attach(connection, row.owner, prompt_id, files)
            _add_answers(connection, row, prompt_id, answers, worker)
            values: dict[str, Any] = {"model": answers[0][1], **_used_now()}
            if parent_id is None and row.titled_by == "words":
                values["title"] = first_words(prompt or ", ".join(name for _, name in files))
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
        """Add another answer to a prompt, by default to the last one; the path then ends there.

        Returns the conversation with this exchange alone. Raises Busy, StreamInUse,
        UnknownConversation (also when there is no prompt).
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            if prompt_id is None:
                prompt_id = _last_prompt(tree.path(connection, row))
            if prompt_id is None:
                raise UnknownConversation("There is no prompt to answer again.")
            prompt = message(connection, row, prompt_id, "user")
            _select_path(connection, row, prompt.id)
            _add_answers(connection, row, prompt.id, [(stream_id, model)], worker)
            return changed(connection, row, {"model": model, **_used_now()})

    def continue_answer(
        self, conversation_id: str, owner: str, answer_id: int, stream_id: str, *, worker: str
    ) -> Conversation:
        """Start a stream that appends to the path's last answer, in the same message.

        The exchange's `prefix` is the text before it. Returns the conversation with this exchange
        alone. Raises Busy, StreamInUse, UnknownConversation (also for an answer that is not the
        last one, or has no text).
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            answer = message(connection, row, answer_id, "assistant")
            if _has_followers(connection, answer) or not answer.content or answer.edited:
                raise UnknownConversation(
                    "This answer cannot be continued: it has no text, you have edited it, or "
                    "messages follow it."
                )
            _select_path(connection, row, answer.id)
            connection.execute(
                update(messages)
                .where(messages.c.id == answer.id)
                .values(state="running", stream_id=stream_id, steps=_renumbered(answer.steps))
            )
            prefix = len(answer.content)
            _add_generation(
                connection, row, answer.id, stream_id, answer.requested_model, worker, prefix
            )
            return changed(connection, row, _used_now())

    def cancel_start(self, conversation_id: str, key: StreamKey) -> None:
        """Undo the start of a stream that has no events yet, and of the alternatives beside it.

        No effect if the stream is unknown or has ended.
        """
        with self._database.writing() as connection:
            lock(connection, [conversation_id])
            generation = connection.execute(
                select(generations).where(
                    generations.c.owner == key.owner,
                    generations.c.id == key.id,
                    generations.c.conversation_id == conversation_id,
                    generations.c.state == "running",
                )
            ).one_or_none()
            if generation is None:
                return
            answer = connection.execute(
                select(messages).where(messages.c.id == generation.message_id)
            ).one()
            if generation.prefix_chars:
                _restore(connection, answer, key.id)
                stream_ids = [key.id]
            else:
                parent_id = answer.parent_id
                answers = tree.versions(connection, conversation_id, parent_id, "assistant")
                ids = [row.id for row in tree.shown_with(answer, answers)]
                stream_ids = list(
                    connection.scalars(select(messages.c.stream_id).where(messages.c.id.in_(ids)))
                )
                tree.remove(connection, conversation_id, ids)
            for table, column in (
                (chunks, chunks.c.generation_id),
                (generations, generations.c.id),
            ):
                connection.execute(
                    delete(table).where(table.c.owner == key.owner, column.in_(stream_ids))
                )

    # --- editing, selecting and discarding --------------------------------------------------------

    def edit_answer(
        self, conversation_id: str, owner: str, answer_id: int, text: str
    ) -> Conversation:
        """Add a version of an answer with the user's text; the path then ends there.

        It keeps the names of the models, the pictures and the sources, but no thoughts, calls and
        figures, which belong to the original. The same text adds no version. Returns the window
        around the answer. Raises Busy, UnknownConversation.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            answer = message(connection, row, answer_id, "assistant")
            if text != answer.content:
                _select_path(connection, row, answer.parent_id)
                steps = tuple(step for step in answer.steps if step.kind in KINDS_BELOW)
                answer_id = _add(
                    connection,
                    row,
                    answer.parent_id,
                    "assistant",
                    text,
                    state="done",
                    requested_model=answer.requested_model,
                    model=answer.model,
                    stream_id=secrets.token_urlsafe(16),  # of no generation; names it on the page
                    ended=Done("stop", NO_FIGURES),
                    steps=steps or None,
                    edited=True,
                )
                images = attached(connection, [answer.id]).get(answer.id, ())
                attach(connection, row.owner, answer_id, [(i.file.hash, i.name) for i in images])
                row = change(connection, row, {"updated_at": time.time()})
            return tree.window(connection, row, around=answer_id, limit=WINDOW)

    def show(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        """Select the path through this message: another version, or the hit of a search.

        Returns the window around it. Raises Busy, UnknownConversation.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            message(connection, row, message_id)
            _select_path(connection, row, message_id)
            row = find(connection, conversation_id, owner)
            return tree.window(connection, row, around=message_id, limit=WINDOW)

    def select(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        """Select one of the last prompt's alternative answers; its model answers from now on.

        Returns the conversation with this exchange alone. Raises UnknownConversation, Busy.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            last = tree.window(connection, row, limit=1).exchanges
            candidates = last[0].candidates if last and last[0].alternatives else ()
            selected = next((one for one in candidates if one.stream_id == stream_id), None)
            if selected is None:
                raise UnknownConversation("There is no such answer to select.")
            refuse_while_running(connection, conversation_id)
            _select_path(connection, row, selected.answer_id)
            return changed(connection, row, {"model": selected.requested_model})

    def discard(self, conversation_id: str, owner: str, answer_id: int) -> str | None:
        """Remove an answer that no message follows.

        If the prompt has another answer, that one is shown instead, and None is returned. Otherwise
        the prompt is removed too, and its text is returned. Raises Busy, UnknownConversation,
        RequestError.
        """
        with self._database.writing() as connection:
            row = find(connection, conversation_id, owner, lock=True)
            refuse_while_running(connection, conversation_id)
            answer = message(connection, row, answer_id, "assistant")
            if _has_followers(connection, answer):
                raise RequestError(
                    "Messages follow this answer. Only an answer that no message follows can be "
                    "discarded.",
                    field="answer",
                )
            return tree.remove(connection, row.id, [answer.id])


def _used_now() -> dict[str, Any]:
    """The values of a conversation in which an answer starts: it leaves the archive."""
    return {"updated_at": time.time(), "archived_at": None}


def _add_answers(
    connection: Connection,
    row: Row[Any],
    prompt_id: int,
    answers: Sequence[tuple[str, str]],
    worker: str,
) -> None:
    """Add an answer for each (stream ID, requested model), and show the first one."""
    first: int | None = None
    for stream_id, requested_model in answers:
        answer_id = _add(
            connection,
            row,
            prompt_id,
            "assistant",
            "",
            state="running",
            requested_model=requested_model,
            stream_id=stream_id,
            first_alternative_id=first,
            is_shown=first is None,
        )
        first = first or answer_id
        _add_generation(connection, row, answer_id, stream_id, requested_model, worker)
    if len(answers) > 1:
        connection.execute(
            update(messages).where(messages.c.id == first).values(first_alternative_id=first)
        )


def _add_generation(
    connection: Connection,
    row: Row[Any],
    answer_id: int,
    stream_id: str,
    requested_model: str,
    worker: str,
    prefix_chars: int = 0,
) -> None:
    """Add the row of a generation that starts now. Raises StreamInUse."""
    values = {
        "id": stream_id,
        "owner": row.owner,
        "conversation_id": row.id,
        "message_id": answer_id,
        "worker": worker,
        "requested_model": requested_model,
        "prefix_chars": prefix_chars,
        "started_at": time.time(),
    }
    added = upsert(connection, generations).values(values).on_conflict_do_nothing()
    if connection.scalar(added.returning(generations.c.id)) is None:
        raise StreamInUse(stream_id)


def _has_followers(connection: Connection, answer: Row[Any]) -> bool:
    """Whether a prompt follows this answer."""
    return bool(tree.versions(connection, answer.conversation_id, answer.id, "user"))


def _last_prompt(path: Sequence[Row[Any]]) -> int | None:
    """The ID of a path's last prompt."""
    return next((int(row.id) for row in reversed(path) if row.role == "user"), None)


def _select_parent(connection: Connection, row: Row[Any], path: Sequence[Row[Any]]) -> int | None:
    """Select the last prompt's answer that the model gets; return it as the next prompt's parent.

    None for an empty path.
    """
    if not path or path[-1].role == "user":
        return path[-1].id if path else None
    last = path[-1]
    answers = tree.versions(connection, row.id, last.parent_id, "assistant")
    answer = next(answer for answer in answers if answer.id == last.id)
    answer_id = tree.answer_for_model(answer, answers)
    if answer_id != last.id:
        tree.choose(connection, row.id, last.parent_id, answer_id)
    return answer_id


def _select_path(connection: Connection, row: Row[Any], message_id: int) -> None:
    """Select the path through this message, and each answer on it among its alternatives."""
    up = (
        select(messages.c.id, messages.c.parent_id)
        .where(messages.c.id == message_id)
        .cte("up", recursive=True)
    )
    above = messages.alias("above")
    up = up.union_all(select(above.c.id, above.c.parent_id).where(above.c.id == up.c.parent_id))
    ancestors = connection.execute(
        select(
            messages.c.id,
            messages.c.parent_id,
            messages.c.first_alternative_id,
            messages.c.selected,
        )
        .select_from(up.join(messages, messages.c.id == up.c.id))
        .order_by(messages.c.depth)
    ).all()
    path_ids = {node.id for node in tree.path(connection, row)}
    for node in ancestors:
        if node.id not in path_ids:
            tree.choose(connection, row.id, node.parent_id, node.id)
        if node.first_alternative_id is not None and not node.selected:
            connection.execute(
                update(messages)
                .where(
                    messages.c.conversation_id == row.id,
                    messages.c.first_alternative_id == node.first_alternative_id,
                )
                .values(selected=messages.c.id == node.id)
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
    is_shown: bool = True,
    **values: Any,
) -> int:
    """Add a message below `parent_id`; returns its ID. `is_shown`: the path leads to it."""
    values |= {"conversation_id": row.id, "parent_id": parent_id, "above": parent_id, "role": role}
    values |= {"content": content, "trigrams": trigrams(content)}
    message_id: int = connection.execute(_ADD, values).scalar_one()
    if is_shown:
        tree.choose(connection, row.id, parent_id, message_id)
    return message_id


def _restore(connection: Connection, answer: Row[Any], stream_id: str) -> None:
    """Restore an answer to its state before this stream was to continue it."""
    previous_id = connection.scalar(
        select(generations.c.id)
        .where(generations.c.message_id == answer.id, generations.c.id != stream_id)
        .order_by(generations.c.started_at.desc())
        .limit(1)
    )
    connection.execute(
        update(messages)
        .where(messages.c.id == answer.id)
        .values(
            state=state_of(tree.terminal_of(answer), answer.content, answer.steps),
            stream_id=previous_id or secrets.token_urlsafe(16),
        )
    )


def _renumbered(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with numbers below 1, so that those of a continuing generation differ from them."""
    return tuple(replace(step, number=n - len(steps)) for n, step in enumerate(steps))

"""Reads and changes the tree of a conversation's messages.

That is the shown branch, the part of it that a page shows, and what a discard removes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    update,
)

from halt.core.events import Cancelled, Done, ErrorInfo, Failed, Terminal
from halt.core.metrics import NO_FIGURES
from halt.store.files import ATTACHED, IS_FILE, attached, by_message, detach
from halt.store.models import Attachment, Conversation, Exchange, Settings, Usage, Versions, stands
from halt.store.tables import attachments, conversations, files, generations, messages

#: Columns that tell the place of a message among its siblings.
PLACE = (
    messages.c.id,
    messages.c.parent_id,
    messages.c.role,
    messages.c.state,
    messages.c.first_alternative_id,
    messages.c.selected,
    (messages.c.content != "").label("has_text"),
    (func.coalesce(func.length(messages.c.steps), 0) > len("[]")).label("has_steps"),
)


def _path(*columns: Any, joined: tuple[tuple[Table, ColumnElement[bool]], ...] = ()) -> Select[Any]:
    """The query for the messages of a path, from the message `first` down.

    `joined`: further tables, each with its condition.
    """
    top = select(messages.c.id, messages.c.chosen_id).where(messages.c.id == bindparam("first"))
    walk = top.cte("walk", recursive=True)
    below = messages.alias("below")
    walk = walk.union_all(
        select(below.c.id, below.c.chosen_id).where(below.c.id == walk.c.chosen_id)
    )
    source = walk.join(messages, messages.c.id == walk.c.id)
    for table, condition in joined:
        source = source.join(table, condition)
    return select(*columns).select_from(source).order_by(messages.c.depth)


_PATH = _path(messages.c.id, messages.c.parent_id, messages.c.role)
_PATH_TEXTS = _path(
    messages.c.id,
    messages.c.role,
    messages.c.state,
    messages.c.content,
    messages.c.edited,
    messages.c.requested_model,
    case((messages.c.state == "error", messages.c.ended)).label("ended"),  # decoding takes time
)

_PATH_FILES = _path(
    *ATTACHED,
    joined=((attachments, attachments.c.message_id == messages.c.id), (files, IS_FILE)),
).order_by(attachments.c.position)


def path(connection: Connection, row: Row[Any]) -> Sequence[Row[Any]]:
    """ID, parent ID and role of each message on the path of a conversation (`row`)."""
    return connection.execute(_PATH, {"first": row.first_id}).all()


def path_texts(connection: Connection, row: Row[Any]) -> Sequence[Row[Any]]:
    """What `PathMessage` has of each message on the path, and its ID."""
    return connection.execute(_PATH_TEXTS, {"first": row.first_id}).all()


def path_files(connection: Connection, row: Row[Any]) -> dict[int, tuple[Attachment, ...]]:
    """The files of the messages on the path, by the messages' IDs."""
    return by_message(connection.execute(_PATH_FILES, {"first": row.first_id}))


def window(
    connection: Connection,
    row: Row[Any],
    *,
    around: int | None = None,
    before: int | None = None,
    after: int | None = None,
    limit: int,
) -> Conversation:
    """The conversation of `row` with a window of its exchanges; see `Conversations.get`."""
    nodes = path(connection, row)
    prompts = [index for index, node in enumerate(nodes) if node.role == "user"]
    start, stop = _bounds(nodes, prompts, around, before, after, max(1, limit))
    exchanges: tuple[Exchange, ...] = ()
    if start < stop:
        end = prompts[stop] if stop < len(prompts) else len(nodes)
        exchanges = _exchanges(connection, row.id, nodes[prompts[start] : end])
    return Conversation(
        row.id,
        row.owner,
        exchanges,
        row.title,
        settings(row),
        has_earlier=start > 0,
        has_later=stop < len(prompts),
        usage=usage(connection, row.id),
        created_at=row.created_at,
        updated_at=row.updated_at,
        is_named=row.titled_by != "words",
        is_pinned=row.pinned_at is not None,
        is_archived=row.archived_at is not None,
    )


def settings(row: Row[Any]) -> Settings:
    """The settings in a conversation's row."""
    return Settings(
        model=row.model,
        system_prompt=row.system_prompt,
        prompt_name=row.prompt_name,
        temperature=row.temperature,
        top_p=row.top_p,
        max_tokens=row.max_tokens,
    )


def _bounds(
    nodes: Sequence[Row[Any]],
    prompts: list[int],
    around: int | None,
    before: int | None,
    after: int | None,
    limit: int,
) -> tuple[int, int]:
    """The numbers, from 0, of the window's first exchange and of the first one after it."""
    message_id = next((value for value in (around, before, after) if value is not None), None)
    index = next((n for n, node in enumerate(nodes) if node.id == message_id), None)
    total = len(prompts)
    if index is None:
        return max(0, total - limit), total
    number = sum(1 for prompt in prompts if prompt <= index) - 1  # the message's exchange
    if around is not None:
        start = max(0, min(number - limit // 2, total - limit))
        return start, min(total, start + limit)
    if before is not None:
        return max(0, number - limit), max(0, number)
    return number + 1, min(total, number + 1 + limit)


def _exchanges(
    connection: Connection, conversation_id: str, nodes: Sequence[Row[Any]]
) -> tuple[Exchange, ...]:
    """Consecutive messages of a path as exchanges."""
    path_ids = {node.id for node in nodes}
    parents = {node.parent_id for node in nodes if node.parent_id is not None} | {
        node.id for node in nodes if node.role == "user"
    }
    siblings: defaultdict[int | None, list[Row[Any]]] = defaultdict(list)
    of_parents: ColumnElement[bool] = messages.c.parent_id.in_(parents)
    if any(node.parent_id is None for node in nodes):
        of_parents = or_(of_parents, messages.c.parent_id.is_(None))
    for row in connection.execute(
        select(*PLACE)
        .where(messages.c.conversation_id == conversation_id, of_parents)
        .order_by(messages.c.id)
    ):
        siblings[row.parent_id].append(row)

    order: list[tuple[int, list[int], int | None]] = []  # prompt, answers shown, earlier version
    for node in nodes:
        if node.role != "user":
            continue
        answers = [row for row in siblings[node.id] if row.role == "assistant"]
        answer = next((row for row in answers if row.id in path_ids), None)
        shown_ids = [] if answer is None else [row.id for row in shown_with(answer, answers)]
        previous_id = None if answer is None else previous_version(answer, answers)
        order.append((node.id, shown_ids, previous_id))
    needed = {
        message_id
        for prompt_id, shown_ids, previous_id in order
        for message_id in (prompt_id, *shown_ids, previous_id or prompt_id)
    }
    rows = {
        row.id: row for row in connection.execute(select(messages).where(messages.c.id.in_(needed)))
    }
    usages = _usage_of(connection, needed)
    attached_files = attached(connection, needed)

    out = []
    for prompt_id, shown_ids, previous_id in order:
        prompt = rows[prompt_id]
        ids = tuple(row.id for row in siblings[prompt_id] if row.role == "assistant")
        prompts = Versions(
            tuple(row.id for row in siblings[prompt.parent_id] if row.role == "user"), prompt_id
        )
        views = [
            replace(
                _exchange(prompt, rows[answer_id], usages, attached_files),
                prompts=prompts,
                versions=Versions(ids, answer_id),
            )
            for answer_id in shown_ids
        ]
        if not views:
            ended = terminal_for_state("interrupted")
            views = [
                Exchange(
                    prompt.content,
                    "",
                    ended=ended,
                    prompt_id=prompt_id,
                    prompts=prompts,
                    files=attached_files.get(prompt_id, ()),
                    state="interrupted",
                )
            ]
        if previous_id is not None:
            previous = _exchange(prompt, rows[previous_id], usages, attached_files)
            views[0] = replace(views[0], previous=previous)
        out.append(replace(views[0], alternatives=tuple(views[1:])))
    return tuple(out)


def shown_with(answer: Row[Any], answers: Sequence[Row[Any]]) -> list[Row[Any]]:
    """The answers that are shown together: this one and its alternatives.

    The selected one comes first; if none is selected, all keep the order of their requests.
    """
    if answer.first_alternative_id is None:
        return [answer]
    return sorted(
        (row for row in answers if row.first_alternative_id == answer.first_alternative_id),
        key=lambda row: not row.selected,
    )


def previous_version(answer: Row[Any], answers: Sequence[Row[Any]]) -> int | None:
    """The ID of the newest earlier version with text, if it replaces this answer (see `stands`).

    None if the answer is shown itself, or there is no such version.
    """
    if (
        stands(answer.state, answer.has_text, answer.has_steps)
        or answer.first_alternative_id is not None
    ):
        return None
    return fallback([row for row in answers if row.id < answer.id and row.has_text])


def fallback(answers: Sequence[Row[Any]]) -> int | None:
    """The ID of the newest answer; of the selected one if that has alternatives."""
    if not answers:
        return None
    return int(shown_with(answers[-1], answers)[0].id)


def answer_for_model(answer: Row[Any], answers: Sequence[Row[Any]]) -> int:
    """The ID of the answer that the model gets: see `Exchange.answer_for_model`."""
    candidates = shown_with(answer, answers)
    if answer.first_alternative_id is None or candidates[0].selected:
        return previous_version(answer, answers) or int(candidates[0].id)
    return int(next((row.id for row in candidates if row.has_text), candidates[0].id))


def versions(
    connection: Connection, conversation_id: str, parent_id: int | None, role: str
) -> list[Row[Any]]:
    """The messages of a role below `parent_id`, oldest first; None: the first messages."""
    below = messages.c.parent_id
    return list(
        connection.execute(
            select(*PLACE)
            .where(
                messages.c.conversation_id == conversation_id,
                below.is_(None) if parent_id is None else below == parent_id,
                messages.c.role == role,
            )
            .order_by(messages.c.id)
        )
    )


def choose(
    connection: Connection, conversation_id: str, parent_id: int | None, chosen: int | None
) -> None:
    """Select the child with the ID `chosen` as the next message of the path; None: no child."""
    if parent_id is None:
        table, key, value = conversations, conversations.c.id == conversation_id, "first_id"
    else:
        table, key, value = messages, messages.c.id == parent_id, "chosen_id"
    connection.execute(update(table).where(key).values({value: chosen}))


def remove(connection: Connection, conversation_id: str, answers: Collection[int]) -> str | None:
    """Remove answers to one prompt; no message may follow them.

    If the prompt has another answer, that one is shown instead, and None is returned. Otherwise the
    prompt is removed too, and its text is returned. In a deleted conversation the prompt stays,
    because the deletion can be undone.
    """
    prompt_id = connection.scalar(
        select(messages.c.parent_id).where(messages.c.id.in_(answers)).limit(1)
    )
    _drop(connection, answers)
    prompt = connection.execute(select(messages).where(messages.c.id == prompt_id)).one()
    other_answers = versions(connection, conversation_id, prompt.id, "assistant")
    if other_answers:
        if prompt.chosen_id in answers:
            choose(connection, conversation_id, prompt.id, fallback(other_answers))
        return None
    deleted = select(conversations.c.deleted_at).where(conversations.c.id == conversation_id)
    if connection.scalar(deleted) is not None:
        choose(connection, conversation_id, prompt.id, None)
        return None
    _drop(connection, [prompt.id])
    if _chosen_below(connection, conversation_id, prompt.parent_id) == prompt.id:
        edits = versions(connection, conversation_id, prompt.parent_id, "user")
        newest = edits[-1].id if edits else None
        choose(connection, conversation_id, prompt.parent_id, newest)
        if newest is None and prompt.parent_id is None:  # the next prompt gives it a new title
            connection.execute(
                update(conversations)
                .where(conversations.c.id == conversation_id, conversations.c.titled_by != "user")
                .values(title="", titled_by="words")
            )
    return str(prompt.content)


def _chosen_below(
    connection: Connection, conversation_id: str, parent_id: int | None
) -> int | None:
    """The ID of the path's message below `parent_id`; None: the first message."""
    if parent_id is None:
        query = select(conversations.c.first_id).where(conversations.c.id == conversation_id)
    else:
        query = select(messages.c.chosen_id).where(messages.c.id == parent_id)
    return connection.scalar(query)


def _drop(connection: Connection, message_ids: Iterable[int]) -> None:
    """Delete messages; their generations stay, because they count in the usage."""
    ids = list(message_ids)
    detach(connection, ids, time.time())
    connection.execute(
        update(generations).where(generations.c.message_id.in_(ids)).values(message_id=None)
    )
    connection.execute(delete(messages).where(messages.c.id.in_(ids)))


def usage(connection: Connection, conversation_id: str) -> Usage:
    """Tokens of all answers that were ever generated in a conversation."""
    sums = connection.execute(
        select(*_SUMS).where(generations.c.conversation_id == conversation_id)
    ).one()
    return Usage(int(sums[0] or 0), int(sums[1] or 0), bool(sums[2]))


_SUMS = (
    func.sum(generations.c.prompt_tokens),
    func.sum(generations.c.completion_tokens),
    func.count().filter(generations.c.estimated),
)


def _usage_of(connection: Connection, ids: Collection[int]) -> dict[int, Usage]:
    """Tokens of each of these messages that has any generation."""
    return {
        sums[0]: Usage(int(sums[1] or 0), int(sums[2] or 0), bool(sums[3]))
        for sums in connection.execute(
            select(generations.c.message_id, *_SUMS)
            .where(generations.c.message_id.in_(ids))
            .group_by(generations.c.message_id)
        )
    }


def _exchange(
    prompt: Row[Any],
    answer: Row[Any],
    usages: Mapping[int, Usage],
    attached_files: Mapping[int, tuple[Attachment, ...]],
) -> Exchange:
    return Exchange(
        prompt.content,
        answer.stream_id,
        answer.content,
        answer.model,
        terminal_or_none(answer),
        steps=answer.steps,
        requested_model=answer.requested_model,
        selected=answer.selected,
        prompt_id=prompt.id,
        answer_id=answer.id,
        state=answer.state,
        usage=usages.get(answer.id, Usage()),
        files=attached_files.get(prompt.id, ()),
        images=attached_files.get(answer.id, ()),
        is_edited=answer.edited,
    )


def terminal_or_none(row: Row[Any]) -> Terminal | None:
    """How a message ended; None while it is being written."""
    return None if row.state == "running" else terminal_of(row)


def terminal_of(row: Row[Any]) -> Terminal:
    """How a message ended; while it is continued, how it had ended before that."""
    return row.ended or terminal_for_state(row.state)


def terminal_for_state(state: str) -> Terminal:
    """A terminal event for a message of which only the state is stored."""
    if state == "done":
        return Done("stop", NO_FIGURES)
    if state in {"stopped", "withdrawn"}:
        return Cancelled(NO_FIGURES)
    return Failed(ErrorInfo("interrupted", "This answer broke off.", True), NO_FIGURES)

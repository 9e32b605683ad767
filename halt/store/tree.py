"""A conversation's messages as SQL: the path that is shown, its windows, and removals from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)

from halt.core.events import Cancelled, Done, ErrorInfo, Failed, Terminal
from halt.core.metrics import NO_FIGURES
from halt.store.models import Conversation, Exchange, Settings, Usage, Versions, stands
from halt.store.tables import conversations, generations, messages

#: What is needed of a message to know its place.
PLACE = (
    messages.c.id,
    messages.c.parent_id,
    messages.c.role,
    messages.c.state,
    messages.c.rivals,
    messages.c.picked,
    (messages.c.content != "").label("has_text"),
    (func.coalesce(func.length(messages.c.folds), 0) > len("[]")).label("has_folds"),
)


def _path(*columns: Any) -> Select[Any]:
    """The messages of a path, from the `first` one down."""
    top = select(messages.c.id, messages.c.chosen_id).where(messages.c.id == bindparam("first"))
    walk = top.cte("walk", recursive=True)
    below = messages.alias("below")
    walk = walk.union_all(
        select(below.c.id, below.c.chosen_id).where(below.c.id == walk.c.chosen_id)
    )
    return (
        select(*columns)
        .select_from(walk.join(messages, messages.c.id == walk.c.id))
        .order_by(messages.c.depth)
    )


_PATH = _path(messages.c.id, messages.c.parent_id, messages.c.role)
_PATH_TEXTS = _path(messages.c.role, messages.c.state, messages.c.content)


def path(connection: Connection, row: Row[Any]) -> Sequence[Row[Any]]:
    """ID, parent and role of each message that is shown of a conversation's row."""
    return connection.execute(_PATH, {"first": row.first_id}).all()


def path_texts(connection: Connection, row: Row[Any]) -> Sequence[Row[Any]]:
    """Role, state and text of each message that is shown."""
    return connection.execute(_PATH_TEXTS, {"first": row.first_id}).all()


def window(
    connection: Connection,
    row: Row[Any],
    *,
    around: int | None = None,
    before: int | None = None,
    after: int | None = None,
    limit: int,
) -> Conversation:
    """A conversation's row with a window of its path's exchanges; see `Conversations.get`."""
    found = path(connection, row)
    prompts = [index for index, each in enumerate(found) if each.role == "user"]
    start, stop = _bounds(found, prompts, around, before, after, max(1, limit))
    exchanges: tuple[Exchange, ...] = ()
    if start < stop:
        last = prompts[stop] if stop < len(prompts) else len(found)
        exchanges = _exchanges(connection, row.id, found[prompts[start] : last])
    return Conversation(
        row.id,
        row.owner,
        exchanges,
        row.title,
        Settings(row.model, row.system_prompt, row.temperature, row.max_tokens),
        has_earlier=start > 0,
        has_later=stop < len(prompts),
        usage=usage(connection, row.id),
        created_at=row.created_at,
        updated_at=row.updated_at,
        named=row.titled_by != "words",
    )


def _bounds(
    found: Sequence[Row[Any]],
    prompts: list[int],
    around: int | None,
    before: int | None,
    after: int | None,
    limit: int,
) -> tuple[int, int]:
    """The window's first exchange, and the first one behind it."""
    wanted = next((each for each in (around, before, after) if each is not None), None)
    index = next((n for n, each in enumerate(found) if each.id == wanted), None)
    total = len(prompts)
    if index is None:
        return max(0, total - limit), total
    number = sum(1 for each in prompts if each <= index) - 1  # the exchange it belongs to
    if around is not None:
        start = max(0, min(number - limit // 2, total - limit))
        return start, min(total, start + limit)
    if before is not None:
        return max(0, number - limit), max(0, number)
    return number + 1, min(total, number + 1 + limit)


def _exchanges(
    connection: Connection, conversation_id: str, found: Sequence[Row[Any]]
) -> tuple[Exchange, ...]:
    """Consecutive messages of a path as exchanges."""
    chosen = {each.id for each in found}
    parents = {each.parent_id for each in found if each.parent_id is not None} | {
        each.id for each in found if each.role == "user"
    }
    siblings: defaultdict[int | None, list[Row[Any]]] = defaultdict(list)
    of_parents: ColumnElement[bool] = messages.c.parent_id.in_(parents)
    if any(each.parent_id is None for each in found):
        of_parents = or_(of_parents, messages.c.parent_id.is_(None))
    for each in connection.execute(
        select(*PLACE)
        .where(messages.c.conversation_id == conversation_id, of_parents)
        .order_by(messages.c.id)
    ):
        siblings[each.parent_id].append(each)

    order: list[tuple[int, list[int], int | None]] = []  # prompt, answers shown, the one before
    for each in found:
        if each.role != "user":
            continue
        answers = [one for one in siblings[each.id] if one.role == "assistant"]
        answer = next((one for one in answers if one.id in chosen), None)
        shown = [] if answer is None else [one.id for one in together(answer, answers)]
        previous = None if answer is None else before_it(answer, answers)
        order.append((each.id, shown, previous))
    needed = {i for prompt, shown, previous in order for i in (prompt, *shown, previous or prompt)}
    full = {
        each.id: each
        for each in connection.execute(select(messages).where(messages.c.id.in_(needed)))
    }
    used = _usage_of(connection, needed)

    out = []
    for prompt_id, shown, previous in order:
        prompt = full[prompt_id]
        ids = tuple(each.id for each in siblings[prompt_id] if each.role == "assistant")
        prompts = Versions(
            tuple(each.id for each in siblings[prompt.parent_id] if each.role == "user"), prompt_id
        )
        views = [
            replace(
                _exchange(prompt, full[each], used.get(each, Usage())),
                prompts=prompts,
                versions=Versions(ids, each),
            )
            for each in shown
        ]
        if not views:
            ended = ended_as("interrupted")
            views = [
                Exchange(
                    prompt.content,
                    "",
                    ended=ended,
                    prompt_id=prompt_id,
                    prompts=prompts,
                    state="interrupted",
                )
            ]
        if previous is not None:
            before = _exchange(prompt, full[previous], used.get(previous, Usage()))
            views[0] = replace(views[0], previous=before)
        out.append(replace(views[0], alternatives=tuple(views[1:])))
    return tuple(out)


def together(answer: Row[Any], answers: Sequence[Row[Any]]) -> list[Row[Any]]:
    """The answers that are shown with the chosen one: itself, or its rivals too.

    The picked one comes first; where none is, all keep the order in which they were asked for.
    """
    if answer.rivals is None:
        return [answer]
    return sorted(
        (each for each in answers if each.rivals == answer.rivals), key=lambda each: not each.picked
    )


def before_it(answer: Row[Any], answers: Sequence[Row[Any]]) -> int | None:
    """The version in place of an answer that does not stand for itself: the newest with text."""
    if stands(answer.state, answer.has_text, answer.has_folds) or answer.rivals is not None:
        return None
    return fallback([each for each in answers if each.id < answer.id and each.has_text])


def fallback(answers: Sequence[Row[Any]]) -> int | None:
    """What is shown where an answer is not: the newest one, or of its rivals the picked one."""
    if not answers:
        return None
    return int(together(answers[-1], answers)[0].id)


def answer_for_model(answer: Row[Any], answers: Sequence[Row[Any]]) -> int:
    """The ID of the answer that the model gets: see `Exchange.answer_for_model`."""
    group = together(answer, answers)
    if answer.rivals is None or group[0].picked:
        return before_it(answer, answers) or int(group[0].id)
    return int(next((each.id for each in group if each.has_text), group[0].id))


def versions(
    connection: Connection, conversation_id: str, parent_id: int | None, role: str
) -> list[Row[Any]]:
    """The messages of a role that follow this one, oldest first; None: at the beginning."""
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
    """Let the path go on with this message."""
    if parent_id is None:
        table, key, value = conversations, conversations.c.id == conversation_id, "first_id"
    else:
        table, key, value = messages, messages.c.id == parent_id, "chosen_id"
    connection.execute(update(table).where(key).values({value: chosen}))


def remove(connection: Connection, conversation_id: str, answers: Collection[int]) -> str | None:
    """Remove answers to one prompt that nothing follows.

    Another version is shown in their place (None); where there is none the prompt goes too, and
    its text is returned. In a conversation that was deleted it stays, for when that is undone.
    """
    prompt_id = connection.scalar(
        select(messages.c.parent_id).where(messages.c.id.in_(answers)).limit(1)
    )
    _drop(connection, answers)
    prompt = connection.execute(select(messages).where(messages.c.id == prompt_id)).one()
    left = versions(connection, conversation_id, prompt.id, "assistant")
    if left:
        if prompt.chosen_id in answers:
            choose(connection, conversation_id, prompt.id, fallback(left))
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
        if newest is None and prompt.parent_id is None:  # the next prompt gives it a new name
            connection.execute(
                update(conversations)
                .where(conversations.c.id == conversation_id, conversations.c.titled_by != "user")
                .values(title="", titled_by="words")
            )
    return str(prompt.content)


def _chosen_below(
    connection: Connection, conversation_id: str, parent_id: int | None
) -> int | None:
    if parent_id is None:
        found = select(conversations.c.first_id).where(conversations.c.id == conversation_id)
    else:
        found = select(messages.c.chosen_id).where(messages.c.id == parent_id)
    return connection.scalar(found)


def _drop(connection: Connection, ids: Iterable[int]) -> None:
    gone = list(ids)
    connection.execute(
        update(generations).where(generations.c.message_id.in_(gone)).values(message_id=None)
    )
    connection.execute(delete(messages).where(messages.c.id.in_(gone)))


def usage(connection: Connection, conversation_id: str) -> Usage:
    """Tokens of everything that was answered in a conversation."""
    found = connection.execute(
        select(*_SUMS).where(generations.c.conversation_id == conversation_id)
    ).one()
    return Usage(int(found[0] or 0), int(found[1] or 0), bool(found[2]))


_SUMS = (
    func.sum(generations.c.prompt_tokens),
    func.sum(generations.c.completion_tokens),
    func.count().filter(generations.c.estimated),
)


def _usage_of(connection: Connection, ids: Collection[int]) -> dict[int, Usage]:
    return {
        each[0]: Usage(int(each[1] or 0), int(each[2] or 0), bool(each[3]))
        for each in connection.execute(
            select(generations.c.message_id, *_SUMS)
            .where(generations.c.message_id.in_(ids))
            .group_by(generations.c.message_id)
        )
    }


def _exchange(prompt: Row[Any], answer: Row[Any], used: Usage) -> Exchange:
    return Exchange(
        prompt.content,
        answer.stream_id,
        answer.content,
        answer.model,
        ended_of(answer),
        steps=answer.folds,
        requested_model=answer.asked_model,
        selected=answer.picked,
        prompt_id=prompt.id,
        answer_id=answer.id,
        state=answer.state,
        usage=used,
    )


def ended_of(row: Row[Any]) -> Terminal | None:
    """How a message ended; None while it is being written."""
    return None if row.state == "running" else end_of(row)


def end_of(row: Row[Any]) -> Terminal:
    """How a message ended, or what was there of it before it was gone on with."""
    return row.ended or ended_as(row.state)


def ended_as(state: str) -> Terminal:
    """The end of a message of which only its state is known."""
    if state == "done":
        return Done("stop", NO_FIGURES)
    if state in {"stopped", "withdrawn"}:
        return Cancelled(NO_FIGURES)
    return Failed(ErrorInfo("interrupted", "This answer broke off.", True), NO_FIGURES)

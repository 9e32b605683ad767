"""Conversations in a database: the SQL behind `halt.store.conversation.Store`.

Each method is one transaction, and those that change a conversation have it to themselves until
they are done: SQLite lets one writer in at a time, PostgreSQL locks the conversation's row. What
generations write is in `halt.store.generations`, how a conversation's messages hang together in
`halt.store.tree`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    true,
    tuple_,
    update,
)

from halt.core.request import Message
from halt.errors import RequestError, StreamInUse
from halt.store import tree
from halt.store.conversation import (
    BUSY,
    MOVED,
    WINDOW,
    Busy,
    Conversation,
    Hit,
    Moved,
    Page,
    Settings,
    Summary,
    UnknownConversation,
    Usage,
    as_told,
    state_of,
)
from halt.store.generations import Records, earlier, generation, text_so_far, written
from halt.store.headings import first_words
from halt.store.portable import PortableConversation, PortableMessage, PortableSettings, check
from halt.store.snippets import INDEXED_MAX, SHOWN, snippet, terms, words
from halt.store.tables import chunks, conversations, generations, messages, storable

TITLE_MAX = 200  # characters of a title
IMPORT_STEP = 500  # messages that one transaction of an import writes
IMPORT_CHARS = 1_000_000  # characters of them, after which there is none more
NEWEST = 5_000  # messages that a search on PostgreSQL looks at first

_encode = msgspec.json.Encoder().encode

_IS_RUNNING = exists().where(
    messages.c.conversation_id == conversations.c.id, messages.c.state == "running"
)


class SqlStore(Records):
    """All conversations and generations; `Store` says what each method does."""

    # --- reading ----------------------------------------------------------------------------------

    def get(
        self,
        conversation_id: str,
        owner: str,
        *,
        around: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = WINDOW,
    ) -> Conversation:
        with self.database.reading() as connection:
            row = _find(connection, conversation_id, owner)
            return tree.window(
                connection, row, around=around, before=before, after=after, limit=limit
            )

    def told(self, conversation_id: str, owner: str, system_prompt: str = "") -> list[Message]:
        with self.database.reading() as connection:
            row = _find(connection, conversation_id, owner)
            said = tree.said(connection, row)
        path = ((each.role, each.state, each.content) for each in said)
        return as_told(path, system_prompt if row.system_prompt is None else row.system_prompt)

    def summaries(
        self, owner: str, cursor: str | None = None, limit: int = WINDOW
    ) -> Page[Summary]:
        limit = max(1, limit)
        found = (
            select(
                conversations.c.id,
                conversations.c.title,
                conversations.c.updated_at,
                _IS_RUNNING.label("running"),
            )
            .where(
                conversations.c.owner == owner,
                conversations.c.deleted_at.is_(None),
                conversations.c.first_id.is_not(None),
            )
            .order_by(conversations.c.updated_at.desc(), conversations.c.id.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            at, _, last = cursor.partition("~")
            place = (_number(at, float), last)
            found = found.where(
                tuple_(conversations.c.updated_at, conversations.c.id) < tuple_(*place)
            )
        with self.database.reading() as connection:
            rows = connection.execute(found).all()
        items = tuple(Summary(*each) for each in rows[:limit])
        more = len(rows) > limit
        return Page(items, f"{items[-1].updated_at!r}~{items[-1].id}" if more else None)

    def has_any(self) -> bool:
        listed = select(conversations.c.id).where(
            conversations.c.deleted_at.is_(None), conversations.c.first_id.is_not(None)
        )
        with self.database.reading() as connection:
            return connection.scalar(listed.limit(1)) is not None

    def search(
        self, owner: str, query: str, cursor: str | None = None, limit: int = 20
    ) -> Page[Hit]:
        limit = max(1, limit)
        wanted, asked = words(query), terms(query)
        if not asked:
            return Page()
        before = 2**62 if cursor is None else _number(cursor, int)
        values: dict[str, Any] = {"owner": owner, "before": before, "limit": limit + 1}
        values["most"] = INDEXED_MAX + SHOWN  # where a hit can be, and what is shown with it
        # The owner is in the index, so that no other one's texts are looked at.
        if self.database.sqlite:
            all_of = " AND ".join(f'"{each}"*' for each in asked)
            mine = owner.replace('"', '""')
            values["query"] = f'owner : "{mine}" AND content : ({all_of})'
            statement = _SQLITE_SEARCH
        else:
            values["query"] = " & ".join(f"'{each}':*" for each in asked)
            mine = owner.replace("\\", "\\\\").replace("'", "''")
            values["mine"] = f"'owner {mine}'"
            statement = _POSTGRES_SEARCH
        with self.database.reading() as connection:
            rows: Sequence[Row[Any]] = []
            if not self.database.sqlite:
                # What is found everywhere is found among the newest; else the index is quick.
                top = connection.scalar(select(func.max(messages.c.id))) or 0
                values["least"] = min(before, top) - NEWEST
                rows = connection.execute(text(statement), values).all()
                values["least"] = 0
            if len(rows) <= limit:
                rows = connection.execute(text(statement), values).all()
        hits = tuple(
            Hit(
                each.conversation_id,
                each.title,
                each.id,
                each.role,
                snippet(each.content, wanted),
                each.created_at,
            )
            for each in rows[:limit]
        )
        return Page(hits, str(hits[-1].message_id) if len(rows) > limit else None)

    def summary(self, conversation_id: str, owner: str) -> Summary:
        with self.database.reading() as connection:
            return _summary(connection, _find(connection, conversation_id, owner))

    def totals(self, conversation_id: str, owner: str) -> Usage:
        with self.database.reading() as connection:
            return tree.usage(connection, _find(connection, conversation_id, owner).id)

    # --- asking -----------------------------------------------------------------------------------

    def begin(
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
        with self.database.writing() as connection:
            row = self._made(connection, conversation_id, owner)
            _refuse_while_running(connection, conversation_id)
            if edit_of is None:
                last = _last(connection, row, "user")
                if after is not None and after != (last or 0):
                    raise Moved(MOVED)
                parent_id = _settle(connection, row, last)
            else:
                parent_id = _message(connection, row, edit_of, "user").parent_id
                if parent_id is not None:
                    _lead(connection, row, parent_id)
            prompt_id = _add(connection, row, parent_id, "user", prompt, state="done")
            self._ask(connection, row, prompt_id, answers, worker)
            values: dict[str, Any] = {"model": storable(answers[0][1]), "updated_at": time.time()}
            if parent_id is None and row.titled_by == "words":
                values["title"] = first_words(prompt)
            return _changed(connection, row, values)

    def again(
        self,
        conversation_id: str,
        owner: str,
        stream_id: str,
        model: str = "",
        *,
        worker: str,
        prompt_id: int | None = None,
    ) -> Conversation:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _refuse_while_running(connection, conversation_id)
            if prompt_id is None:
                prompt_id = _last(connection, row, "user")
            if prompt_id is None:
                raise UnknownConversation("There is nothing to answer again.")
            prompt = _message(connection, row, prompt_id, "user")
            _lead(connection, row, prompt.id)
            self._ask(connection, row, prompt.id, [(stream_id, model)], worker)
            return _changed(connection, row, {"model": storable(model), "updated_at": time.time()})

    def extend(
        self, conversation_id: str, owner: str, answer_id: int, stream_id: str, *, worker: str
    ) -> Conversation:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _refuse_while_running(connection, conversation_id)
            answer = _message(connection, row, answer_id, "assistant")
            if _followed(connection, answer) or not answer.content:
                raise UnknownConversation("There is no such answer to go on with.")
            _lead(connection, row, answer.id)
            connection.execute(
                update(messages)
                .where(messages.c.id == answer.id)
                .values(
                    state="running",
                    stream_id=stream_id,
                    folds=_encode(earlier(tree.folds_of(answer.folds))),
                )
            )
            self._generations(
                connection,
                row,
                [(stream_id, answer.asked_model, answer.id)],
                worker,
                len(answer.content),
            )
            return _changed(connection, row, {"updated_at": time.time()})

    def take_back(self, conversation_id: str, stream_id: str) -> None:
        with self.database.writing() as connection:
            connection.execute(
                select(conversations.c.id)
                .where(conversations.c.id == conversation_id)
                .with_for_update()
            )
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
                group = [
                    each
                    for each in tree.versions(
                        connection, conversation_id, answer.parent_id, "assistant"
                    )
                    if each.id == answer.id
                    or (answer.rivals is not None and each.rivals == answer.rivals)
                ]
                ids = [each.id for each in group]
                gone = list(
                    connection.scalars(select(messages.c.stream_id).where(messages.c.id.in_(ids)))
                )
                tree.remove(connection, conversation_id, ids)
            connection.execute(delete(chunks).where(chunks.c.generation_id.in_(gone)))
            connection.execute(delete(generations).where(generations.c.id.in_(gone)))

    def _ask(
        self,
        connection: Connection,
        row: Row[Any],
        prompt_id: int,
        answers: Sequence[tuple[str, str]],
        worker: str,
    ) -> None:
        """Add answers to a prompt, to be written by these streams, and show the first one."""
        streams: list[tuple[str, str, int]] = []
        first: int | None = None
        for stream_id, asked in answers:
            answer_id = _add(
                connection,
                row,
                prompt_id,
                "assistant",
                "",
                state="running",
                asked_model=storable(asked),
                stream_id=stream_id,
                rivals=first,
                chosen=first is None,
            )
            first = first or answer_id
            streams.append((stream_id, asked, answer_id))
        if len(streams) > 1:
            connection.execute(update(messages).where(messages.c.id == first).values(rivals=first))
        self._generations(connection, row, streams, worker)

    def _generations(
        self,
        connection: Connection,
        row: Row[Any],
        streams: Iterable[tuple[str, str, int]],
        worker: str,
        prefix_chars: int = 0,
    ) -> None:
        """Write down that these streams, (ID, model, message) each, begin. Raises StreamInUse."""
        for stream_id, asked, message_id in streams:
            values = generation(
                stream_id,
                row.owner,
                worker,
                asked,
                time.time(),
                conversation_id=row.id,
                message_id=message_id,
                prefix_chars=prefix_chars,
            )
            added = self._insert(generations).values(values).on_conflict_do_nothing()
            if connection.scalar(added.returning(generations.c.id)) is None:
                raise StreamInUse(f"The stream ID {stream_id!r} is in use.", field="id")

    def _made(self, connection: Connection, conversation_id: str, owner: str) -> Row[Any]:
        """The conversation's row, new where there is none. Raises UnknownConversation."""
        at = time.time()
        values = {
            "id": conversation_id,
            "owner": owner,
            "title": "",
            "titled_by": "words",
            "model": "",
            "created_at": at,
            "updated_at": at,
        }
        connection.execute(self._insert(conversations).values(values).on_conflict_do_nothing())
        return _find(connection, conversation_id, owner, lock=True)

    # --- moving -----------------------------------------------------------------------------------

    def show(self, conversation_id: str, owner: str, message_id: int) -> Conversation:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _refuse_while_running(connection, conversation_id)
            _message(connection, row, message_id)
            _lead(connection, row, message_id)
            row = _find(connection, conversation_id, owner)
            return tree.window(connection, row, around=message_id, limit=WINDOW)

    def pick(self, conversation_id: str, owner: str, stream_id: str) -> Conversation:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            last = tree.window(connection, row, limit=1).exchanges
            candidates = last[0].candidates if last and last[0].rivals else ()
            chosen = next((each for each in candidates if each.stream_id == stream_id), None)
            if chosen is None:
                raise UnknownConversation("There is no such answer to go on with.")
            _refuse_while_running(connection, conversation_id)
            _lead(connection, row, chosen.answer_id)
            return _changed(connection, row, {"model": chosen.asked})

    def discard(self, conversation_id: str, owner: str, answer_id: int) -> str | None:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _refuse_while_running(connection, conversation_id)
            answer = _message(connection, row, answer_id, "assistant")
            if _followed(connection, answer):
                raise RequestError(
                    "More was said after this answer; only one that nothing follows can be "
                    "discarded.",
                    field="answer",
                )
            return tree.remove(connection, row.id, [answer.id])

    # --- keeping ----------------------------------------------------------------------------------

    def rename(self, conversation_id: str, owner: str, title: str) -> Summary:
        title = storable(" ".join(title.split()))
        if not title:
            raise RequestError("A title needs at least one character.", field="title")
        if len(title) > TITLE_MAX:
            raise RequestError(f"A title has at most {TITLE_MAX} characters.", field="title")
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _update(connection, row, {"title": title, "titled_by": "user"})
            return _summary(connection, _find(connection, conversation_id, owner))

    def is_listed(self, conversation_id: str) -> bool:
        with self.database.reading() as connection:
            found = select(conversations.c.id).where(
                conversations.c.id == conversation_id, conversations.c.deleted_at.is_(None)
            )
            return connection.scalar(found) is not None

    def title_from_model(self, conversation_id: str, owner: str | None, title: str) -> bool:
        title = storable(" ".join(title.split())[:TITLE_MAX])
        with self.database.writing() as connection:
            changed = connection.execute(
                update(conversations)
                .where(
                    conversations.c.id == conversation_id,
                    true() if owner is None else conversations.c.owner == owner,
                    conversations.c.deleted_at.is_(None),
                    conversations.c.first_id.is_not(None),
                    conversations.c.titled_by != "user",
                )
                .values(title=title, titled_by="model")
            )
            return bool(title) and changed.rowcount == 1

    def set_settings(self, conversation_id: str, owner: str, settings: Settings) -> Conversation:
        with self.database.writing() as connection:
            row = self._made(connection, conversation_id, owner)
            return _changed(
                connection,
                row,
                {
                    "model": storable(settings.model),
                    "system_prompt": settings.system_prompt and storable(settings.system_prompt),
                    "temperature": settings.temperature,
                    "max_tokens": settings.max_tokens,
                },
            )

    def delete(self, conversation_id: str, owner: str) -> list[str]:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True)
            _update(connection, row, {"deleted_at": time.time()})
            return list(
                connection.scalars(
                    select(messages.c.stream_id).where(
                        messages.c.conversation_id == row.id, messages.c.state == "running"
                    )
                )
            )

    def undelete(self, conversation_id: str, owner: str) -> Summary:
        with self.database.writing() as connection:
            row = _find(connection, conversation_id, owner, lock=True, deleted=True)
            _update(connection, row, {"deleted_at": None})
            return _summary(connection, _find(connection, conversation_id, owner))

    def export(
        self, owner: str, conversation_id: str | None = None
    ) -> Iterator[PortableConversation]:
        if conversation_id is not None:
            with self.database.reading() as connection:
                one = _portable(connection, _find(connection, conversation_id, owner))
            return iter([one])
        return self._export_all(owner)

    def _export_all(self, owner: str) -> Iterator[PortableConversation]:
        last = ""
        while True:
            with self.database.reading() as connection:
                row = connection.execute(
                    select(conversations)
                    .where(
                        conversations.c.owner == owner,
                        conversations.c.deleted_at.is_(None),
                        conversations.c.first_id.is_not(None),
                        conversations.c.id > last,
                    )
                    .order_by(conversations.c.id)
                    .limit(1)
                ).one_or_none()
                if row is None:
                    return
                one = _portable(connection, row)
            last = row.id
            yield one

    def import_(self, owner: str, conversations_: Iterable[PortableConversation]) -> list[str]:
        # Deleted until all are there: others can write in between, and nobody sees half of them.
        added = []
        for each in conversations_:
            check(each)
            added.append(self._import(owner, each))
        with self.database.writing() as connection:
            for some in _steps(added):
                connection.execute(
                    update(conversations)
                    .where(conversations.c.id.in_(some))
                    .values(deleted_at=None)
                )
        return added

    @staticmethod
    def _values(given: PortableConversation) -> dict[str, Any]:
        at = time.time()
        title = " ".join(storable(given.title).split())[:TITLE_MAX]
        return {
            "title": title or first_words(given.messages[0].content),
            "titled_by": "user" if title else "words",
            "model": storable(given.settings.model),
            "system_prompt": given.settings.system_prompt
            and storable(given.settings.system_prompt),
            "temperature": given.settings.temperature,
            "max_tokens": given.settings.max_tokens,
            "created_at": given.created_at or at,
            "updated_at": given.updated_at or at,
        }

    def _import(self, owner: str, given: PortableConversation) -> str:
        """Add one conversation, deleted as yet, in steps that hold up nobody for long."""
        with self.database.writing() as connection:
            taken = select(conversations.c.id).where(conversations.c.id == given.id)
            new_id = secrets.token_urlsafe(16) if connection.scalar(taken) else given.id
            values = {"id": new_id, "owner": owner, "deleted_at": time.time()}
            connection.execute(insert(conversations).values(values | self._values(given)))
        ids: dict[int | None, int | None] = {None: None}
        for some in _steps(given.messages, lambda each: len(each.content)):
            with self.database.writing() as connection:
                added = connection.scalars(
                    insert(messages).returning(messages.c.id, sort_by_parameter_order=True),
                    [_imported(new_id, each) for each in some],
                )
                ids.update(zip((each.id for each in some), added, strict=True))
        wanted = set(given.chosen)
        chosen = {each.parent: ids[each.id] for each in given.messages}  # where none is named
        chosen |= {each.parent: ids[each.id] for each in given.messages if each.id in wanted}
        depths: dict[int | None, int] = {None: -1}
        groups: dict[int, int | None] = {}
        places = []
        for each in given.messages:
            depths[each.id] = depths[each.parent] + 1
            group = None
            if each.rivals is not None:
                group = groups.setdefault(each.rivals, ids[each.id])
            places.append(
                {
                    "message": ids[each.id],
                    "above": ids[each.parent],
                    "below": chosen.get(each.id),
                    "level": depths[each.id],
                    "group": group,
                }
            )
        for part in _steps(places):
            with self.database.writing() as connection:
                connection.execute(_PLACED, part)
        with self.database.writing() as connection:
            tree.choose(connection, new_id, None, chosen.get(None))
        return new_id


_PLACED = (
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(
        parent_id=bindparam("above"),
        chosen_id=bindparam("below"),
        depth=bindparam("level"),
        rivals=bindparam("group"),
    )
)

T = TypeVar("T")


def _steps(rows: Iterable[T], size: Callable[[T], int] = lambda row: 0) -> Iterator[list[T]]:
    """The rows in parts that take a moment each."""
    step: list[T] = []
    total = 0
    for row in rows:
        step.append(row)
        total += size(row)
        if len(step) >= IMPORT_STEP or total >= IMPORT_CHARS:
            yield step
            step, total = [], 0
    if step:
        yield step


def _imported(conversation_id: str, given: PortableMessage) -> dict[str, Any]:
    """The row of a message of a file, without its place in the tree."""
    return {
        "conversation_id": conversation_id,
        "depth": 0,
        "role": given.role,
        **written(given.content),
        "state": given.state,
        "model": storable(given.model),
        "asked_model": storable(given.asked),
        "stream_id": secrets.token_urlsafe(16) if given.role == "assistant" else "",
        "picked": given.picked,
        "created_at": given.created_at or time.time(),
        "ended": _encode(given.ended or tree.ended_as(given.state)),
        "folds": _encode(given.folds) if given.folds else None,
    }


_SQLITE_SEARCH = """
    SELECT m.id, m.conversation_id, c.title, m.role, substr(m.content, 1, :most) AS content,
      m.created_at
    FROM messages_words JOIN messages m ON m.id = messages_words.rowid
    JOIN conversations c ON c.id = m.conversation_id
    WHERE messages_words MATCH :query AND messages_words.rowid < :before
    AND c.owner = :owner AND c.deleted_at IS NULL
    ORDER BY messages_words.rowid DESC LIMIT :limit
"""

_POSTGRES_SEARCH = """
    WITH found AS MATERIALIZED (
      SELECT id FROM messages WHERE id < :before AND id >= :least
      AND words @@ (to_tsquery('simple', :query) && CAST(:mine AS tsquery))
    )
    SELECT m.id, m.conversation_id, c.title, m.role, substr(m.content, 1, :most) AS content,
      m.created_at
    FROM found JOIN messages m ON m.id = found.id JOIN conversations c ON c.id = m.conversation_id
    WHERE c.owner = :owner AND c.deleted_at IS NULL
    ORDER BY found.id DESC LIMIT :limit
"""


def _number(cursor: str, kind: type[Any]) -> Any:
    try:
        value = kind(cursor)
    except ValueError:
        raise RequestError("This is not a cursor of an earlier page.", field="cursor") from None
    if not -(2**62) < value < 2**62:
        raise RequestError("This is not a cursor of an earlier page.", field="cursor")
    return value


def _find(
    connection: Connection,
    conversation_id: str,
    owner: str,
    *,
    lock: bool = False,
    deleted: bool = False,
) -> Row[Any]:
    found = select(conversations).where(
        conversations.c.id == conversation_id, conversations.c.owner == owner
    )
    if not deleted:
        found = found.where(conversations.c.deleted_at.is_(None))
    row = connection.execute(found.with_for_update() if lock else found).one_or_none()
    if row is None:
        raise UnknownConversation(
            "There is no such conversation here. "
            "Conversations belong to the browser that began them."
        )
    return row


def _message(
    connection: Connection, row: Row[Any], message_id: int, role: str | None = None
) -> Row[Any]:
    place = message_id if 0 < message_id < 2**63 else 0
    found = connection.execute(
        select(messages).where(messages.c.id == place, messages.c.conversation_id == row.id)
    ).one_or_none()
    if found is None or role not in {None, found.role}:
        raise UnknownConversation("There is no such message in this conversation.")
    return found


def _followed(connection: Connection, answer: Row[Any]) -> bool:
    """More was said after this answer."""
    return bool(tree.versions(connection, answer.conversation_id, answer.id, "user"))


def _refuse_while_running(connection: Connection, conversation_id: str) -> None:
    running = select(messages.c.id).where(
        messages.c.conversation_id == conversation_id, messages.c.state == "running"
    )
    if connection.execute(running.limit(1)).first() is not None:
        raise Busy(BUSY)


def _last(connection: Connection, row: Row[Any], role: str) -> int | None:
    """The last message of the path with this role."""
    found = reversed(tree.path(connection, row))
    return next((int(each.id) for each in found if each.role == role), None)


def _settle(connection: Connection, row: Row[Any], prompt_id: int | None) -> int | None:
    """What the next prompt follows: of the path's last prompt the answer that is gone on with."""
    if prompt_id is None:
        return None
    answers = tree.versions(connection, row.id, prompt_id, "assistant")
    chosen_id = connection.scalar(select(messages.c.chosen_id).where(messages.c.id == prompt_id))
    answer = next((each for each in answers if each.id == chosen_id), None)
    if answer is None:
        return prompt_id
    told = tree.told_id(answer, answers)
    if told != chosen_id:
        tree.choose(connection, row.id, prompt_id, told)
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
    depth = select(func.coalesce(func.max(messages.c.depth) + 1, 0)).where(
        messages.c.id == parent_id
    )
    message_id: int = connection.execute(
        insert(messages)
        .values(
            {
                "asked_model": "",
                "model": "",
                "stream_id": "",
                "picked": False,
                "created_at": time.time(),
                **values,
                "conversation_id": row.id,
                "parent_id": parent_id,
                "depth": depth.scalar_subquery(),
                "role": role,
                **written(content),
            }
        )
        .returning(messages.c.id)
    ).scalar_one()
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
            state=state_of(tree.end_of(answer), answer.content, tree.folds_of(answer.folds)),
            stream_id=before or secrets.token_urlsafe(16),
        )
    )


def _update(connection: Connection, row: Row[Any], values: dict[str, Any]) -> None:
    connection.execute(update(conversations).where(conversations.c.id == row.id).values(values))


def _changed(connection: Connection, row: Row[Any], values: dict[str, Any]) -> Conversation:
    """Change the conversation's row; the conversation with its last exchange alone."""
    _update(connection, row, values)
    return tree.window(connection, _find(connection, row.id, row.owner), limit=1)


def _summary(connection: Connection, row: Row[Any]) -> Summary:
    running = connection.scalar(select(_IS_RUNNING).where(conversations.c.id == row.id))
    return Summary(row.id, row.title, row.updated_at, bool(running))


def _portable(connection: Connection, row: Row[Any]) -> PortableConversation:
    rows = connection.execute(
        select(messages)
        .where(messages.c.conversation_id == row.id)
        .order_by(messages.c.depth, messages.c.id)
    ).all()

    def running(each: Row[Any]) -> bool:
        return bool(each.state == "running")

    chosen = {each.chosen_id for each in rows} | {row.first_id}
    number = {each.id: n for n, each in enumerate(rows, 1)}
    return PortableConversation(
        row.id,
        row.title,
        [
            PortableMessage(
                number[each.id],
                each.role,
                each.content + (text_so_far(connection, each.stream_id) if running(each) else ""),
                None if each.parent_id is None else number[each.parent_id],
                each.model,
                each.asked_model,
                "interrupted" if running(each) else each.state,
                each.rivals,
                each.picked,
                each.created_at,
                tree.ended_of(each),
                list(tree.folds_of(each.folds)),
            )
            for each in rows
        ],
        [number[each.id] for each in rows if each.id in chosen],
        PortableSettings(row.model, row.system_prompt, row.temperature, row.max_tokens),
        row.created_at,
        row.updated_at,
    )

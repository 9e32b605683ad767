"""Searches all messages of an owner; makes the words of the index, of queries and the snippets.

A message is found by its text, and by the names of its files. A word of a query matches all words
that start with it. Chinese, Japanese, Thai and others are written without spaces between words. In
these scripts every three consecutive letters are a word of the index (`trigrams`), so that a query
matches inside a text too; one or two letters match as the start of such a word. In names of files
words match anywhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, or_, select, text, tuple_

from halt.rendering.data_urls import labelled
from halt.store.database import Database
from halt.store.models import Hit, Page
from halt.store.rows import cursor_number
from halt.store.tables import attachments, conversations, messages

NEWEST = 5_000  # messages that a search reads first
_FUTURE = 2**61  # above all times and IDs

#: Indexed characters of one message, from its start. SQLite needs 8 us for each character of a
#: Chinese text, and no other transaction can write in that time.
INDEXED_MAX = 400_000
WORDS_MAX = 20  # words of one query
LONGEST = 100  # characters of one word
BEFORE = 60  # characters shown before the first match
SHOWN = 240  # characters of a snippet

#: Thai, Lao, Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD_START = rf"(?:(?<![^\W_])|(?<=[{_UNSPACED}]))"  # in scripts with spaces

Piece = tuple[str, bool]


class Search:
    """Searches messages by words."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, owner: str, query: str, cursor: str | None = None, limit: int = 20) -> Page[Hit]:
        """Messages with all words of the query, or with words that start with them; newest first.

        Also messages with a file whose name has all of them, for which the snippet is the name. A
        query without words has no hits. No character of the query has a special meaning. Raises
        RequestError (`cursor`).
        """
        limit = max(1, limit)
        query_words, index_terms = words(query), index_terms_of(query)
        if not index_terms:
            return Page()
        at, _, last = (cursor or f"{_FUTURE}~{_FUTURE}").partition("~")
        values: dict[str, Any] = {"owner": owner, "limit": limit + 1, "newest": NEWEST}
        values |= {"at": cursor_number(at, float), "before": cursor_number(last, int)}
        values["most"] = INDEXED_MAX + SHOWN  # the indexed part and a snippet
        statement = _SQLITE_SEARCH if self._database.sqlite else _POSTGRES_SEARCH
        with self._database.reading() as connection:
            values |= self._terms(connection, owner, index_terms)
            # A frequent word has enough hits among the newest messages; for a rare one the search
            # of the whole index is fast.
            newest = connection.execute(_NEWEST, values).one()
            rows = connection.execute(statement, values | newest._asdict()).all()
            if len(rows) <= limit:
                rows = connection.execute(statement, values | _ALL).all()
            by_id = _named(connection, owner, query.split()[:WORDS_MAX], values)
        by_id |= {row.id: _hit(row, snippet(labelled(row.content), query_words)) for row in rows}
        hits = sorted(by_id.values(), key=lambda hit: (hit.created_at, hit.message_id))[::-1]
        page_hits = tuple(hits[:limit])
        next_cursor = (
            f"{page_hits[-1].created_at!r}~{page_hits[-1].message_id}"
            if len(hits) > limit
            else None
        )
        return Page(page_hits, next_cursor)

    def _terms(self, connection: Connection, owner: str, index_terms: list[str]) -> dict[str, str]:
        """The query for the index.

        The owner is a word of the index, so that the search reads no texts of other owners. It is
        the one under which a conversation was indexed.
        """
        names = select(conversations.c.indexed_as).where(conversations.c.owner == owner).distinct()
        owners = list(connection.scalars(names)) or [owner]
        if self._database.sqlite:
            quoted = " OR ".join('"{}"'.format(name.replace('"', '""')) for name in owners)
            all_terms = " AND ".join(f'"{term}"*' for term in index_terms)
            return {"query": f"owner : ({quoted}) AND content : ({all_terms})"}
        quoted = " | ".join(
            "'owner {}'".format(name.replace("\\", "\\\\").replace("'", "''")) for name in owners
        )
        return {"query": " & ".join(f"'{term}':*" for term in index_terms), "mine": quoted}


_NAMED: tuple[ColumnElement[Any], ...] = (
    messages.c.id,
    messages.c.conversation_id,
    messages.c.role,
    messages.c.created_at,
    conversations.c.title,
    conversations.c.archived_at,
)


def _named(
    connection: Connection, owner: str, name_words: Sequence[str], values: dict[str, Any]
) -> dict[int, Hit]:
    """The newest messages with a file whose name has all words, by their IDs.

    `values`: those of the search by words; its `limit` and the place of its cursor apply.
    """
    has_words = [has_word(attachments.c.name, word) for word in name_words]
    of_owner = select(attachments.c.message_id).where(attachments.c.owner == owner, *has_words)
    rows = connection.execute(
        select(*_NAMED)
        .join(conversations, conversations.c.id == messages.c.conversation_id)
        .where(
            messages.c.id.in_(of_owner),
            tuple_(messages.c.created_at, messages.c.id) < tuple_(values["at"], values["before"]),
            conversations.c.owner == owner,
            conversations.c.deleted_at.is_(None),
        )
        .order_by(messages.c.created_at.desc(), messages.c.id.desc())
        .limit(values["limit"])
    ).all()
    names: defaultdict[int, list[str]] = defaultdict(list)
    query = select(attachments.c.message_id, attachments.c.name).where(*has_words)
    query = query.where(attachments.c.message_id.in_([row.id for row in rows]))
    for message_id, name in connection.execute(query.order_by(attachments.c.position)):
        names[message_id].append(name)
    return {row.id: _hit(row, _marked(", ".join(names[row.id]), name_words)) for row in rows}


def has_word(column: ColumnElement[str], word: str) -> ColumnElement[bool]:
    """Whether a text has a word, also inside of another one, in upper and lower case."""
    # SQLite compares letters other than ASCII with their case.
    forms = {word, word.lower(), word.upper(), word.capitalize()}
    return or_(*(column.icontains(form, autoescape=True) for form in forms))


def _hit(row: Row[Any], pieces: tuple[Piece, ...]) -> Hit:
    return Hit(
        row.conversation_id,
        row.title,
        row.id,
        row.role,
        pieces,
        row.created_at,
        row.archived_at is not None,
    )


def _marked(names: str, name_words: Sequence[str]) -> tuple[Piece, ...]:
    """The beginning of the names, with the words marked."""
    part = names[:SHOWN] + ("…" if len(names) > SHOWN else "")
    pieces = re.split(f"({'|'.join(map(re.escape, name_words))})", part, flags=re.IGNORECASE)
    return tuple((piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece)


#: The place of the newest messages before the cursor, by time and then by ID: an import has new IDs
#: and old times.
_NEWEST = text("""
    SELECT coalesce(min(id), 0) AS first_id, coalesce(max(id), 0) AS last_id,
      coalesce(min(created_at), 0) AS since
    FROM (SELECT id, created_at FROM messages WHERE (created_at, id) < (:at, :before)
      ORDER BY created_at DESC, id DESC LIMIT :newest) AS newest
""")
_ALL = {"first_id": 0, "last_id": _FUTURE, "since": -_FUTURE}

# CROSS JOIN keeps the order: SQLite reads the index first.
_SQLITE_SEARCH = text("""
    WITH newest AS (
      SELECT m.id, c.title, c.archived_at FROM messages_words
      CROSS JOIN messages m ON m.id = messages_words.rowid
      CROSS JOIN conversations c ON c.id = m.conversation_id
      WHERE messages_words MATCH :query
      AND messages_words.rowid BETWEEN :first_id AND :last_id
      AND (m.created_at, m.id) >= (:since, :first_id) AND (m.created_at, m.id) < (:at, :before)
      AND c.owner = :owner AND c.deleted_at IS NULL
      ORDER BY m.created_at DESC, m.id DESC LIMIT :limit
    )
    SELECT m.id, m.conversation_id, newest.title, m.role,
      substr(m.content, 1, :most) AS content, m.created_at, newest.archived_at
    FROM newest JOIN messages m ON m.id = newest.id ORDER BY m.created_at DESC, m.id DESC
""")

_POSTGRES_SEARCH = text("""
    WITH found AS MATERIALIZED (
      SELECT id, conversation_id, created_at FROM messages
      WHERE (created_at, id) >= (:since, :first_id) AND (created_at, id) < (:at, :before)
      AND words @@ (to_tsquery('simple', :query) && CAST(:mine AS tsquery))
    ), newest AS (
      SELECT found.id, c.title, c.archived_at
      FROM found JOIN conversations c ON c.id = found.conversation_id
      WHERE c.owner = :owner AND c.deleted_at IS NULL
      ORDER BY found.created_at DESC, found.id DESC LIMIT :limit
    )
    SELECT m.id, m.conversation_id, newest.title, m.role,
      substr(m.content, 1, :most) AS content, m.created_at, newest.archived_at
    FROM newest JOIN messages m ON m.id = newest.id ORDER BY m.created_at DESC, m.id DESC
""")


def trigrams(text: str) -> str | None:
    """The text to index in place of a message's text; None if the text itself is indexed.

    It is cut to INDEXED_MAX characters.
    """
    part = text[:INDEXED_MAX]
    if not part.isascii() and _RUN.search(part):
        # A letter becomes up to four characters, so `part` is long enough.
        return _RUN.sub(lambda run: _cut(run[0], end=1), part)[:INDEXED_MAX]
    return part if len(part) < len(text) else None


def _cut(run: str, end: int) -> str:
    """The trigrams of a run, without marks; at its end also shorter ones, down to `end` letters."""
    letters = "".join(char for char in run if char.isalnum())
    parts = [letters[at : at + 3] for at in range(max(1, len(letters) - end + 1))]
    return f" {' '.join(parts)} "


def words(query: str) -> list[str]:
    """The distinct words of a query: letters and digits, in lower case; at most WORDS_MAX."""
    all_words = (word[:LONGEST] for word in re.findall(r"[^\W_]+", query.lower()))
    return list(dict.fromkeys(all_words))[:WORDS_MAX]


def index_terms_of(query: str) -> list[str]:
    """The prefixes of index words that a message must have to match the query."""
    return words(_RUN.sub(lambda run: _cut(run[0], end=3), query))


def snippet(text: str, query_words: list[str]) -> tuple[Piece, ...]:
    """The part of a text around the first match of a query word, in pieces (text, is a match).

    Words match as in the search itself. The pieces are plain text.
    """
    longest = sorted(query_words, key=len, reverse=True)
    inside = [re.escape(word) for word in longest if _RUN.search(word)]
    prefixes = [re.escape(word) for word in longest if not _RUN.search(word)]
    word_patterns = [rf"{_WORD_START}(?:{'|'.join(prefixes)})[^\W_]*"] if prefixes else []
    pattern = re.compile("|".join(inside + word_patterns), re.IGNORECASE)
    first = pattern.search(text, 0, INDEXED_MAX)
    start = max(0, first.start() - BEFORE) if first else 0
    if start:
        start = text.rfind(" ", 0, start + 1) + 1 or start  # at the start of a word
        start = max(start, first.start() - 2 * BEFORE if first else 0)
    part = text[start : start + SHOWN]
    pieces: list[Piece] = [("…", False)] if start else []
    at = 0
    for match in pattern.finditer(part):
        pieces += [(part[at : match.start()], False), (match[0], True)]
        at = match.end()
    pieces.append((part[at:] + ("…" if start + SHOWN < len(text) else ""), False))
    return tuple((" ".join(piece.split("\n")), is_hit) for piece, is_hit in pieces if piece)

"""The search in all messages: its words, its index, and where in a text they were found.

Words are found by their beginnings. Chinese, Japanese, Thai and others are written without blanks
between words; there each three letters in a row are a word of the index (`trigrams`), so that what
is inside of a text is found as well: one or two letters are the beginning of such a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select, text

from halt.store.database import Database
from halt.store.models import Hit, Page
from halt.store.rows import cursor_number
from halt.store.tables import messages

NEWEST = 5_000  # messages that a search on PostgreSQL looks at first

#: Characters of one message that the index takes, from its beginning. For each of a Chinese text
#: SQLite takes 8 us, in which nothing else can be written.
INDEXED_MAX = 400_000
WORDS_MAX = 20  # words of one query
LONGEST = 100  # characters of one word
BEFORE = 60  # characters shown before the first hit
SHOWN = 240  # characters of a snippet

#: Thai, Lao, Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_BEGINNING = rf"(?:(?<![^\W_])|(?<=[{_UNSPACED}]))"  # of a word of the other scripts

Piece = tuple[str, bool]


class Search:
    """Finds messages by their words."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, owner: str, query: str, cursor: str | None = None, limit: int = 20) -> Page[Hit]:
        """Messages that hold all words of the query, or words beginning so; the newest first.

        No word, no hit; no character of the query has a meaning of its own. Raises RequestError.
        """
        limit = max(1, limit)
        wanted, asked = words(query), terms(query)
        if not asked:
            return Page()
        before = 2**62 if cursor is None else cursor_number(cursor, int)
        values: dict[str, Any] = {"owner": owner, "before": before, "limit": limit + 1}
        values["most"] = INDEXED_MAX + SHOWN  # where a hit can be, and what is shown with it
        # The owner is in the index, so that no other one's texts are looked at.
        if self._database.sqlite:
            all_of = " AND ".join(f'"{each}"*' for each in asked)
            mine = owner.replace('"', '""')
            values["query"] = f'owner : "{mine}" AND content : ({all_of})'
            statement = _SQLITE_SEARCH
        else:
            values["query"] = " & ".join(f"'{each}':*" for each in asked)
            mine = owner.replace("\\", "\\\\").replace("'", "''")
            values["mine"] = f"'owner {mine}'"
            statement = _POSTGRES_SEARCH
        with self._database.reading() as connection:
            rows: Sequence[Row[Any]] = []
            if not self._database.sqlite:
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


def trigrams(text: str) -> str | None:
    """A text as its words go into the index; None where that is the text itself.

    Of a longer text than INDEXED_MAX, and of one that is longer in trigrams, the beginning.
    """
    part = text[:INDEXED_MAX]
    if not part.isascii() and _RUN.search(part):
        # A letter becomes four characters, so this much is enough to cut from.
        return _RUN.sub(lambda run: _cut(run[0], end=1), part)[:INDEXED_MAX]
    return part if len(part) < len(text) else None


def _cut(run: str, end: int) -> str:
    """The trigrams of a run, without its marks; those at its end may be shorter, down to `end`."""
    letters = "".join(each for each in run if each.isalnum())
    parts = [letters[at : at + 3] for at in range(max(1, len(letters) - end + 1))]
    return f" {' '.join(parts)} "


def words(query: str) -> list[str]:
    """The words of a query: letters and digits, in lower case, each once."""
    found = (each[:LONGEST] for each in re.findall(r"[^\W_]+", query.lower()))
    return list(dict.fromkeys(found))[:WORDS_MAX]


def terms(query: str) -> list[str]:
    """What the index is asked for: its words begin with these."""
    return words(_RUN.sub(lambda run: _cut(run[0], end=3), query))


def snippet(text: str, wanted: list[str]) -> tuple[Piece, ...]:
    """The part of a text around the first of these words, in pieces: (text, was searched for).

    Words count as found as in the search itself. The pieces are plain text.
    """
    longest = sorted(wanted, key=len, reverse=True)
    inside = [re.escape(each) for each in longest if _RUN.search(each)]
    begun = [re.escape(each) for each in longest if not _RUN.search(each)]
    whole = [rf"{_BEGINNING}(?:{'|'.join(begun)})[^\W_]*"] if begun else []
    pattern = re.compile("|".join(inside + whole), re.IGNORECASE)
    first = pattern.search(text, 0, INDEXED_MAX)
    start = max(0, first.start() - BEFORE) if first else 0
    if start:
        start = text.rfind(" ", 0, start + 1) + 1 or start  # at a word's beginning
        start = max(start, first.start() - 2 * BEFORE if first else 0)
    part = text[start : start + SHOWN]
    pieces: list[Piece] = [("…", False)] if start else []
    at = 0
    for match in pattern.finditer(part):
        pieces += [(part[at : match.start()], False), (match[0], True)]
        at = match.end()
    pieces.append((part[at:] + ("…" if start + SHOWN < len(text) else ""), False))
    return tuple((" ".join(said.split("\n")), hit) for said, hit in pieces if said)

"""The files of messages, in rows of at most PART bytes.

A file is stored under its person and the hash of its content, once, however many messages have it.
It is written in one transaction for each row, so that other writers come in between; `complete` is
set last. Two uploads of the same content at once write the same rows.

A file that no message has is removed UNUSED_FOR seconds after that, one that was not completed
after UNFINISHED_FOR (`halt.store.retention`).
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from halt.errors import TooLarge
from halt.files.facts import Role
from halt.store.database import Database, upsert
from halt.store.models import Attachment, StoredFile, UnknownFile
from halt.store.portable_files import ContentReader
from halt.store.tables import attachments, file_parts, files

PART = 1_000_000  # bytes of a row
#: Seconds.
UNUSED_FOR, UNFINISHED_FOR = 86_400.0, 3_600.0
SIZES_LOCK = 7_106_905  # class of the advisory locks of PostgreSQL for the files of a person

_HASH = re.compile(r"[0-9a-f]{64}")  # PostgreSQL refuses a text with a NUL


class Files:
    """The files of all people. A call that raises StoreUnavailable has stored no complete file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(
        self,
        owner: str,
        file: StoredFile,
        parts: Callable[[Role], Iterator[bytes]],
        *,
        max_bytes: int,
    ) -> StoredFile:
        """Store a file; of one that is stored already only the time is changed.

        `parts` gives the bytes of a role in pieces of at most PART. `max_bytes`: of all files of
        the person. Returns the file as it is stored. Raises TooLarge beyond `max_bytes`;
        UnknownFile if the file was removed meanwhile, with its person.
        """
        if (stored := self._begin(owner, file, max_bytes)) is not None:
            return stored
        for role in file.sizes:
            for number, data in enumerate(parts(role)):
                self._add(owner, file.hash, role, number, data)
        with self._database.writing() as connection:
            completed = update(files).where(*_is(owner, file.hash)).values(complete=True)
            is_there = connection.execute(completed).rowcount > 0
            if not is_there:
                connection.execute(
                    delete(file_parts).where(
                        file_parts.c.owner == owner, file_parts.c.hash == file.hash
                    )
                )
        if not is_there:
            raise UnknownFile("The file was removed while it was kept. Attach it again.")
        return file

    def _begin(self, owner: str, file: StoredFile, max_bytes: int) -> StoredFile | None:
        """Add the file's row, or find it complete."""
        size, at = sum(file.sizes.values()), time.time()
        with self._database.writing() as connection:
            seen = update(files).where(*_is(owner, file.hash)).values(uploaded_at=at)
            row = connection.execute(seen.returning(*_FILE, files.c.complete)).one_or_none()
            if row is not None:
                # Also of an upload that broke off: a sweep must not remove it during this one.
                _mark_unused(connection, owner, [file.hash], at)
                return StoredFile(row.hash, row.facts, row.sizes) if row.complete else None
            _lock_sizes(connection, owner)
            sizes = select(func.coalesce(func.sum(files.c.size), 0)).where(files.c.owner == owner)
            used = int(connection.scalar(sizes) or 0)
            if used + size > max_bytes:
                raise TooLarge(
                    f"Your files take {used / 1e6:,.0f} MB already; at most "
                    f"{max_bytes / 1e6:,.0f} MB are kept. Delete conversations with files first.",
                    field="file",
                )
            values = {
                "owner": owner,
                "hash": file.hash,
                "facts": file.facts,
                "sizes": file.sizes,
                "size": size,
                "uploaded_at": at,
                "unused_since": at,
            }
            connection.execute(  # another upload of the same may just have added it
                upsert(connection, files).values(values).on_conflict_do_nothing()
            )
        return None

    def _add(self, owner: str, file_hash: str, role: Role, number: int, data: bytes) -> None:
        values = {"owner": owner, "hash": file_hash, "role": role, "number": number, "data": data}
        with self._database.writing() as connection:
            connection.execute(
                upsert(connection, file_parts).values(values).on_conflict_do_nothing()
            )

    def get(self, owner: str, file_hash: str) -> StoredFile:
        """A file. Raises UnknownFile."""
        file = self.many(owner, [file_hash]).get(file_hash)
        if file is None:
            raise UnknownFile("There is no such file here.")
        return file

    def many(self, owner: str, hashes: Collection[str]) -> dict[str, StoredFile]:
        """Those of the files that there are, by their hashes."""
        with self._database.reading() as connection:
            return many(connection, owner, hashes)

    def data(self, owner: str, file_hash: str, role: Role) -> Iterator[bytes]:
        """The bytes of a part of a file, in pieces; each is read in a transaction of its own.

        Raises UnknownFile, also where the file is removed meanwhile.
        """
        left = self.get(owner, file_hash).sizes.get(role, 0)
        number = 0
        query = select(file_parts.c.data)
        while left > 0:
            with self._database.reading() as connection:
                piece = connection.scalar(
                    query.where(
                        file_parts.c.owner == owner,
                        file_parts.c.hash == file_hash,
                        file_parts.c.role == role,
                        file_parts.c.number == number,
                    )
                )
            if piece is None:
                raise UnknownFile("The file was removed.")
            yield piece
            left -= len(piece)
            number += 1

    def contents(self, owner: str) -> ContentReader:
        """The files of a person, for an export."""
        return lambda file_hash: self.data(owner, file_hash, "content")

    def refresh(self, owner: str, file_hash: str) -> bool:
        """Keep a file as if it were uploaded now; False if it is not there."""
        at = time.time()
        with self._database.writing() as connection:
            seen = update(files).where(*_is(owner, file_hash), files.c.complete.is_(True))
            if not connection.execute(seen.values(uploaded_at=at)).rowcount:
                return False
            _mark_unused(connection, owner, [file_hash], at)
            return True

    def remove_unused(self, owner: str, hashes: Collection[str]) -> None:
        """Remove those of the files that no message has, at once."""
        if not hashes:
            return
        with self._database.writing() as connection:
            query = select(files.c.hash).where(
                files.c.owner == owner,
                files.c.hash.in_(hashes),
                files.c.unused_since.is_not(None),
            )
            unused = list(connection.scalars(query.with_for_update()))
            for table in (file_parts, files):
                connection.execute(
                    delete(table).where(table.c.owner == owner, table.c.hash.in_(unused))
                )

    def read(self, owner: str, file_hash: str, role: Role) -> bytes:
        """All bytes of a part of a file. Raises UnknownFile."""
        return b"".join(self.data(owner, file_hash, role))


def _lock_sizes(connection: Connection, owner: str) -> None:
    """Until the transaction ends, no other adds files of this person, whose sizes are summed up."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        key = zlib.crc32(owner.encode()) - (1 << 31)
        connection.execute(select(func.pg_advisory_xact_lock(SIZES_LOCK, key)))


GONE = "A file of this message is no longer here. Attach it again."
_FILE = (files.c.hash, files.c.facts, files.c.sizes)
#: The columns for `by_message`, and the condition that joins their tables.
ATTACHED = (attachments.c.message_id, attachments.c.name, *_FILE)
IS_FILE = (files.c.owner == attachments.c.owner) & (files.c.hash == attachments.c.hash)


def _is(owner: str, file_hash: str) -> tuple[ColumnElement[bool], ...]:
    return files.c.owner == owner, files.c.hash == file_hash


def many(connection: Connection, owner: str, hashes: Collection[str]) -> dict[str, StoredFile]:
    """The complete ones of these files of a person, by their hashes."""
    hashes = [file_hash for file_hash in hashes if _HASH.fullmatch(file_hash)]
    if not hashes:
        return {}
    query = select(*_FILE).where(
        files.c.owner == owner, files.c.hash.in_(hashes), files.c.complete.is_(True)
    )
    return {row.hash: StoredFile(*row) for row in connection.execute(query)}


def attach(
    connection: Connection, owner: str, message_id: int, attached: Sequence[tuple[str, str]]
) -> None:
    """Give files (hash, name) to a message, in this order. Raises UnknownFile.

    Against the removal of a file that no message had yet: this update waits for it, or it for this.
    """
    hashes = {file_hash for file_hash, _ in attached}
    if not hashes:
        return
    known = [file_hash for file_hash in hashes if _HASH.fullmatch(file_hash)]
    used = (
        update(files)
        .where(files.c.owner == owner, files.c.hash.in_(known), files.c.complete.is_(True))
        .values(unused_since=None)
    )
    if len(set(connection.scalars(used.returning(files.c.hash)))) < len(hashes):
        raise UnknownFile(GONE)
    connection.execute(
        insert(attachments),
        [
            {
                "message_id": message_id,
                "position": position,
                "owner": owner,
                "hash": file_hash,
                "name": name,
            }
            for position, (file_hash, name) in enumerate(attached)
        ],
    )


def attached(
    connection: Connection, message_ids: Collection[int]
) -> dict[int, tuple[Attachment, ...]]:
    """The files of those of the messages that have some, in their order."""
    query = select(*ATTACHED).join(files, IS_FILE).where(attachments.c.message_id.in_(message_ids))
    return by_message(connection.execute(query.order_by(attachments.c.position)))


def by_message(rows: Iterable[Row[Any]]) -> dict[int, tuple[Attachment, ...]]:
    """The attachments of rows with the columns ATTACHED, by the messages' IDs."""
    by_id: dict[int, list[Attachment]] = {}
    for row in rows:
        file = StoredFile(row.hash, row.facts, row.sizes)
        by_id.setdefault(row.message_id, []).append(Attachment(row.name, file))
    return {message_id: tuple(files) for message_id, files in by_id.items()}


def detach(
    connection: Connection, message_ids: Collection[int] | Select[int], at: float | None
) -> None:
    """Take the files from messages that are removed.

    Those that no message has are unused from `at` on; None: since they were uploaded.
    """
    gone = delete(attachments).where(attachments.c.message_id.in_(message_ids))
    rows = connection.execute(gone.returning(attachments.c.owner, attachments.c.hash)).all()
    by_owner: dict[str, list[str]] = {}
    for owner, file_hash in rows:
        by_owner.setdefault(owner, []).append(file_hash)
    for owner, hashes in by_owner.items():
        _mark_unused(connection, owner, hashes, at)


def _mark_unused(
    connection: Connection, owner: str, hashes: Collection[str], at: float | None
) -> None:
    has_message = exists().where(
        attachments.c.owner == files.c.owner, attachments.c.hash == files.c.hash
    )
    connection.execute(
        update(files)
        .where(files.c.owner == owner, files.c.hash.in_(hashes), ~has_message)
        .values(unused_since=files.c.uploaded_at if at is None else at)
    )

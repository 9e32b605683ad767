"""Takes files from clients: receives them, has them read, and keeps them."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from halt.config import data_dir
from halt.config.settings import Config
from halt.errors import RequestError, StoreUnavailable
from halt.files.facts import Facts
from halt.files.faults import ReadersBusy, over_limit
from halt.files.names import clean_name
from halt.files.readers import BUSY_RETRY_AFTER, UNPACKED_MAX, Readers, temporary_file
from halt.store.files import Files
from halt.store.models import StoredFile

PIECE = 1 << 18  # bytes that are received at a time
#: Requests with files of one person at once: each holds one of the threads of the server that
#: receive files (16), also while its client sends nothing.
RECEIVED_MAX = 12
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where a file comes from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; b"" at the end."""


class PieceSource:
    """A source whose bytes come in pieces, none of them empty."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """See `Source`. Raises what the iterator raises."""
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]


class Uploaded(NamedTuple):
    """A file that was taken, under the name that it is shown with."""

    name: str
    file: StoredFile

    @property
    def facts(self) -> Facts:
        return self.file.facts


class Uploads:
    """Takes the files of all people. Threads may share it."""

    def __init__(
        self, config: Config, files: Files, make_readers: Callable[[], Readers] = Readers
    ) -> None:
        self._config = config
        self._files = files
        self._readers = make_readers()
        self._lock = threading.Lock()  # protects `_received`
        self._received: Counter[str] = Counter()  # requests that are being received, by person

    @contextlib.contextmanager
    def receiving(self, owner: str) -> Iterator[None]:
        """Context manager: a request with files is received. Raises ReadersBusy."""
        with self._lock:
            if self._received[owner] >= RECEIVED_MAX:
                raise ReadersBusy(
                    f"Too many files are being uploaded. Try again in {BUSY_RETRY_AFTER:g} s.",
                    retry_after=BUSY_RETRY_AFTER,
                )
            self._received[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._received[owner] -= 1
                self._received += Counter()  # drops those without requests

    def take(self, owner: str, name: str, source: Source, size: int | None = None) -> Uploaded:
        """Receive a file, read it, and keep it. After any error nothing of it is left.

        `size`: bytes, where they are known before. Raises FileError, TooLarge, RequestError for one
        that breaks off, ReadersBusy, StoreUnavailable.
        """
        name, config = clean_name(name), self._config
        limit = config.max_file_bytes
        if size is not None and size > limit:
            raise over_limit(name, limit)
        try:
            data_dir.prepare(config.data_folder)
            with (
                temporary_file(config.data_folder) as spooled,
                temporary_file(config.data_folder) as kept,
            ):
                received = _receive(source, spooled, limit)
                if received > limit:
                    raise over_limit(name, limit)
                if size is not None and received < size:
                    raise RequestError(f"{name}: The upload broke off.", field="file")
                read = self._readers.read(
                    spooled,
                    kept,
                    name,
                    max_chars=config.max_file_chars,
                    max_bytes=UNPACKED_MAX,
                )
                stored = self._files.save(
                    owner,
                    StoredFile(read.hash, read.facts, read.sizes),
                    read.parts,
                    max_bytes=config.max_person_bytes,
                )
        except OSError as exc:
            if exc.errno in DISK_FULL:
                raise StoreUnavailable(
                    f"{name}: The disk is full. The file was not kept.", "the disk is full"
                ) from exc
            logger.exception("a file cannot be taken")
            reason = exc.strerror or str(exc)  # the latter: no process can be started
            raise StoreUnavailable(f"{name}: The file was not kept: {reason}.", reason) from exc
        return Uploaded(name, stored)

    def close(self) -> None:
        """End the reading processes."""
        self._readers.close()


def _receive(source: Source, spooled: BinaryIO, limit: int) -> int:
    """Write what arrives to a file, at most a piece more than `limit`; returns the bytes."""
    received = 0
    while received <= limit and (piece := source.read(PIECE)):
        spooled.write(piece)
        received += len(piece)
    spooled.flush()
    return received

"""The files that are attached in the terminal: read here, and kept in memory with the chat."""

from __future__ import annotations

import logging
import os
import queue
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from halt.chat.file_contents import check_limits, messages_with_files
from halt.cli.answer import SIGNAL_INTERVAL, on_signals
from halt.clock import now
from halt.config.settings import Config
from halt.core.request import Message
from halt.errors import HaltError, RequestError
from halt.files.facts import Role
from halt.files.faults import over_limit
from halt.files.names import clean_name
from halt.files.readers import UNPACKED_MAX, Readers
from halt.model_info import UNKNOWN, Abilities
from halt.store.models import Attachment, Exchange, StoredFile
from halt.store.prompt_messages import PromptPath, exchange_path

NOTE_AFTER = 2.0  # seconds of reading after which `note` is called
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

logger = logging.getLogger(__name__)


class ReadingStopped(HaltError):
    """Ctrl-C was pressed while a file was read."""


class AttachedFiles:
    """Reads files for the chat, and makes the messages with them. Used by the main thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._readers = Readers()
        self._data: dict[tuple[str, Role], bytes] = {}  # by the file's hash

    def added(
        self, path: str, attached: Sequence[Attachment], note: Callable[[str], None]
    ) -> list[Attachment]:
        """Read a file, and return it after those that the message has already.

        `note` is called with a sentence if it takes long. Raises HaltError, which is ReadingStopped
        at Ctrl-C, and SystemExit at other signals that end a program.
        """
        check_limits(self._config, len(attached) + 1, ())
        attachment = self._interruptible(path, note)
        files = [*attached, *([attachment] if attachment not in attached else [])]
        check_limits(self._config, len(files), [file.file for file in files])
        return files

    def messages(
        self,
        exchanges: Sequence[Exchange],
        system_prompt: str,
        abilities: Callable[[], Abilities],
    ) -> list[Message]:
        """The messages of a chat. `abilities`: of the model, called if there are files.

        Raises ImagesNotRead, TooLarge.
        """
        path = PromptPath(None, list(exchange_path(exchanges)))
        known = abilities() if path.has_files else UNKNOWN
        return messages_with_files(self._config, self, "", path, system_prompt, known)

    def read(self, owner: str, file_hash: str, role: Role) -> bytes:
        """The bytes of a part of a file: see `halt.chat.file_contents.FileData`."""
        return self._data[file_hash, role]

    def close(self) -> None:
        """End the reading processes."""
        self._readers.close()

    def _interruptible(self, path: str, note: Callable[[str], None]) -> Attachment:
        """Read a file in a thread, so that signals end the wait in every phase."""
        results: queue.SimpleQueue[Attachment | HaltError | int] = queue.SimpleQueue()

        def work() -> None:
            # A reading process inherits this: until it ignores them, Ctrl-C would end it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                results.put(self._read(path))
            except HaltError as fault:
                results.put(fault)
            except Exception as exc:
                logger.exception("chat")
                results.put(HaltError(f"Internal error: {type(exc).__name__}."))

        with on_signals(lambda number, _: results.put(number)):
            threading.Thread(target=work, name="halt-chat-file", daemon=True).start()
            result = self._first(results, lambda: note(f"Reading {path}. Ctrl-C stops it."))
        if isinstance(result, Attachment):
            return result
        if isinstance(result, HaltError):
            raise result
        self._readers.close()
        self._readers = Readers()
        if result == signal.SIGINT:
            raise ReadingStopped(f"{path} was not attached.")
        raise SystemExit(128 + result)

    @staticmethod
    def _first(
        results: queue.SimpleQueue[Attachment | HaltError | int], on_wait: Callable[[], None]
    ) -> Attachment | HaltError | int:
        note_at = now() + NOTE_AFTER
        while True:
            try:
                return results.get(timeout=SIGNAL_INTERVAL)
            except queue.Empty:
                if now() > note_at:
                    on_wait()
                    note_at = float("inf")

    def _read(self, path: str) -> Attachment:
        """Read a file and keep what is sent of it. Raises HaltError."""
        try:
            full_path = Path(path).expanduser()
            mode = full_path.stat().st_mode
            if not stat.S_ISREG(mode):
                noun = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise RequestError(f"{path} is {noun}. Give the name of a file.")
            return self._read_open(full_path)
        except (OSError, RuntimeError, ValueError) as exc:
            reason = (isinstance(exc, OSError) and exc.strerror) or exc
            raise RequestError(f"{path} cannot be read: {reason}.") from exc

    def _read_open(self, path: Path) -> Attachment:
        config, name = self._config, clean_name(path.name)
        with path.open("rb") as source, tempfile.TemporaryFile() as kept:
            if os.fstat(source.fileno()).st_size > config.max_file_bytes:
                raise over_limit(name, config.max_file_bytes)
            read = self._readers.read(
                source, kept, name, max_chars=config.max_file_chars, max_bytes=UNPACKED_MAX
            )
            roles: list[Role] = ["text"] if read.facts.kind == "text" else ["text", "content"]
            for role in roles:
                self._data[read.hash, role] = b"".join(read.parts(role))
        return Attachment(name, StoredFile(read.hash, read.facts, read.sizes))


def numbered(files: Sequence[Attachment]) -> list[str]:
    """A line for each file, with its number from 1."""
    return [
        f"{number}  {file.name} · {file.file.facts.label} · {file.file.facts.detail}"
        for number, file in enumerate(files, 1)
    ]

"""The model that answered last: one name for all workers, in a file of the data folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from halt.config.data_dir import open_private

NAME_MAX = 1000  # bytes of a name that is read


class LastModel:
    """A name that threads and processes share; the newest one that was set is everybody's.

    Where the file cannot be written, this process alone remembers it.
    """

    def __init__(self, path: Path | None = None) -> None:
        """`path` None: there is no file."""
        self._path = path
        # Both change at once, so a thread sees a name with the state of the file that had it.
        self._known: tuple[tuple[int, int] | None, str] = (None, "")

    @property
    def name(self) -> str:
        """The name, empty where none is known."""
        state = self._state()
        if state is not None and state != self._known[0] and self._path is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError), self._path.open("rb") as file:
                self._known = state, file.read(NAME_MAX).decode().strip()
        return self._known[1]

    def set(self, name: str) -> None:
        """Remember a name. Writes nothing where it is the one that is known."""
        if name == self.name:
            return
        self._known = self._known[0], name
        if self._path is None:
            return
        part = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(open_private(part, os.O_WRONLY | os.O_EXCL), "w") as file:
                file.write(f"{name}\n")
            part.replace(self._path)
        except OSError:  # the disk is full, or the folder read-only or not made
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _state(self) -> tuple[int, int] | None:
        """What changes with each file that is put there; None where there is none."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

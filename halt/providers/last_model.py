"""The name of the model that was used last, shared by all workers in a file of the data folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from halt.config.data_dir import open_private

NAME_MAX = 1000  # bytes of the file that are read


class LastModel:
    """A model's name that threads and processes share. The last `set` wins in all of them.

    If the file cannot be written, only this process remembers the name.
    """

    def __init__(self, path: Path | None = None) -> None:
        """`path` None: keep the name in memory only."""
        self._path = path
        # (state of the file, name): one assignment replaces both, so that a thread never sees a
        # name with the state of another file.
        self._known: tuple[tuple[int, int] | None, str] = (None, "")

    @property
    def name(self) -> str:
        """The name, empty if none is known."""
        state = self._state()
        if state is not None and state != self._known[0] and self._path is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError), self._path.open("rb") as file:
                self._known = state, file.read(NAME_MAX).decode().strip()
        return self._known[1]

    def set(self, name: str) -> None:
        """Store a name. Writes no file if the name has not changed."""
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
        except OSError:  # the disk is full, or the folder is read-only or missing
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _state(self) -> tuple[int, int] | None:
        """Return (inode, mtime in ns), which change with each new file; None without a file."""
        if self._path is None:
            return None
        try:
            file_status = self._path.stat()
        except OSError:
            return None
        return file_status.st_ino, file_status.st_mtime_ns

"""Numbered locks that several processes share: lock n is a kernel lock on byte n of a file.

These are POSIX record locks; the file stays empty, since bytes beyond its end can be locked. The
kernel frees the locks of a process when it ends for any reason, so no clean-up is needed and no
count can become wrong.

These locks belong to a process, not to a thread: its `halt.core.slots.Slots` keeps the table of the
numbers that this process has taken. The file is opened once and never closed: closing any
descriptor of it would free all locks of this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from pathlib import Path

#: C's `struct flock`, to query the locks of other processes. None: its layout on this system is not
#: known here.
_FLOCK = struct.Struct("hhqqi") if sys.platform == "linux" and sys.maxsize > 2**32 else None


class FileLocks:
    """See the module, and `halt.core.slots.Locks`."""

    def __init__(self, path: Path) -> None:
        """Shared by all processes that open the same path. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, number: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def give_back(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the file system was unmounted, or fails
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def all_free(self, count: int) -> bool | None:
        if _FLOCK is None:
            return None
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, count, 0)
        try:
            conflicting = fcntl.fcntl(self._file, fcntl.F_GETLK, wanted)
        except OSError:  # the file system was unmounted, or fails: a later call fails as well
            return True
        return bool(_FLOCK.unpack(conflicting)[0] == fcntl.F_UNLCK)

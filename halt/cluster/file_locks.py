"""Locks on numbers that several processes share: locks of the kernel, a byte of a file for each.

A number is taken by locking its byte (POSIX record locks; the file stays empty, since bytes beyond
its end can be locked). The kernel gives back what a process had when it ends, however it ends, so
that nothing has to be cleaned up and no count can go wrong.

Those locks belong to a process, not to a thread: what this process has taken stands in the table of
its `halt.core.slots.Slots`. The file is opened once and never closed: closing any descriptor of it
would give back all that this process has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from pathlib import Path

#: C's `struct flock`, with which the system is asked for a lock of another process. None: it is not
#: known of this system.
_FLOCK = struct.Struct("hhqqi") if sys.platform == "linux" and sys.maxsize > 2**32 else None


class FileLocks:
    """See the module, and `halt.core.slots.Locks`."""

    def __init__(self, path: Path) -> None:
        """Of all processes that name the same file. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, number: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def give_back(self, number: int) -> None:
        with contextlib.suppress(OSError):  # of a file system that went away
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def none_taken(self, count: int) -> bool | None:
        if _FLOCK is None:
            return None
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, count, 0)
        try:
            found = fcntl.fcntl(self._file, fcntl.F_GETLK, wanted)
        except OSError:  # of a file system that went away
            return True
        return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)

"""An SQLite database whose locks another program holds, so that it is not read or written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

ALL = 8  # locks of SQLite's write-ahead log
#: Takes as many of these locks, of which the first one is that of writers, and holds them until its
#: input ends. Its own process: a test that has the database open would lose SQLite's locks.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[2]), 120)
    print("frozen", flush=True)
    sys.stdin.read()
"""


def unwritable_sqlite(data_folder: Path) -> AbstractContextManager[None]:
    """Let no program write to that database while the body runs; all can read."""
    return frozen_sqlite(data_folder, 1)


@contextmanager
def frozen_sqlite(data_folder: Path, locks: int = ALL) -> Iterator[None]:
    """Freeze the database of a server with this data folder while the body runs."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data_folder / "halt.db-shm"), str(locks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "frozen\n"
        yield
        holder.communicate()

"""An SQLite database whose locks another program holds, so that it answers no call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Takes all locks of SQLite's write-ahead log, then holds them until its input ends. Its own
#: process: a test that has the database open itself would lose SQLite's locks with these.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 8, 120)
    print("frozen", flush=True)
    sys.stdin.read()
"""


@contextmanager
def frozen_sqlite(data_folder: Path) -> Iterator[None]:
    """Freeze the database of a server with this data folder while the body runs."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data_folder / "halt.db-shm")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "frozen\n"
        yield
        holder.communicate()

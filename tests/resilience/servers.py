"""A Halt with limits of the system, and a PostgreSQL that a test can freeze and kill."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import psycopg

from tests.support.frozen_process import frozen, send
from tests.support.halt_server import HaltServer
from tests.support.ports import free_port
from tests.support.process_facts import tree
from tests.support.waiting import SERVER_TIMEOUT, wait_until

START_TIMEOUT = 60.0


class LimitedServer(HaltServer):
    """A Halt whose process first runs `code_before` (`os` and `resource` are imported)."""

    def __init__(self, env: dict[str, str], code_before: str) -> None:
        start = "os.execv(sys.executable, [sys.executable, 'app.py'])"
        self.command = ("-c", f"import os, resource, sys; {code_before}; {start}")
        super().__init__(env)


def descriptors_limited(count: int) -> str:
    """Code for `code_before` that limits the descriptors to `count`, as `ulimit -n` does."""
    return f"resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))"


def workers(server: HaltServer) -> list[int]:
    """The master's child processes."""
    master = server.process.pid
    children = Path(f"/proc/{master}/task/{master}/children")
    wait_until(children.read_text, SERVER_TIMEOUT)
    return [int(n) for n in children.read_text().split()]


# --- PostgreSQL -----------------------------------------------------------------------------------


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; None if it is not installed."""
    paths = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return paths[-1].parent if paths else None


class Postgres:
    """A PostgreSQL in a new folder on a free port. `url` is for DATABASE_URL."""

    def __init__(self) -> None:
        programs = postgres_programs()
        assert programs is not None
        self._programs = programs
        self._folder = tempfile.TemporaryDirectory(prefix="halt-postgres-", dir="/tmp")
        folder = Path(self._folder.name)
        self._as_user = list[str]()
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as_user = [
                *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
            ]
        self._data = folder / "data"
        self.port = free_port()
        self.url = f"postgresql://halt@127.0.0.1:{self.port}/postgres"
        subprocess.run(
            [
                *(*self._as_user, str(programs / "initdb"), "-D", str(self._data), "-U", "halt"),
                *("-A", "trust", "-E", "UTF8", "--locale=C", "-N"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        self.start()

    def start(self) -> None:
        """Start the server on its port; return when it accepts connections."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": self.port,
            "fsync": "off",
            "max_connections": 100,
        }
        self._process = subprocess.Popen(
            [*self._as_user, str(self._programs / "postgres"), "-D", str(self._data)]
            + [f"--{name}={value}" for name, value in options.items()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        deadline = time.monotonic() + START_TIMEOUT
        ready_command = [
            str(self._programs / "pg_isready"),
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        while subprocess.run(ready_command, check=False).returncode != 0:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError("PostgreSQL does not start")
            time.sleep(0.05)

    @property
    def processes(self) -> list[int]:
        """All of its processes."""
        return tree(self._process.pid)

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Stop all its processes with SIGSTOP; only the kernel accepts connections."""
        return frozen(self._process.pid)

    def thaw(self) -> None:
        """Continue frozen processes; without effect on others."""
        send(signal.SIGCONT, self.processes)

    def execute(self, *statements: str) -> None:
        """Execute these statements on a new connection."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def kill(self) -> None:
        """`kill -9` of all its processes."""
        send(signal.SIGKILL, self.processes)
        self._process.wait()

    def stop(self) -> None:
        """Shut down with SIGINT, which also closes the connections of its clients."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._folder.cleanup()

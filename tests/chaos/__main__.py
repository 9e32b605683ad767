"""`python -m tests.chaos`: faults at random moments under load; status 1 if a fault does harm.

Each round starts streams of numbered tokens, in conversations and through the API, makes one part
fail meanwhile, restores it, and checks: every answer that a reader received is there with exactly
one end, without at most --may-lose seconds of text if a process was killed; no thread, descriptor,
process or file is left. `--seed N --round K` repeats a round. Findings are written to --findings.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halt.rendering.pool import PROCESSES
from tests.chaos.streams import (
    RestartableServer,
    UpstreamProcess,
    check_streams,
    prompt_during_kill,
    start_streams,
)
from tests.resilience import loads
from tests.resilience.bystander import STOP_WITHIN, Bystander
from tests.resilience.servers import (
    Postgres,
    postgres_programs,
)
from tests.support.http_client import Client
from tests.support.process_facts import descriptors, status, tree
from tests.support.waiting import wait_until

STREAMS = 12  # in each round
ROUNDS = 15  # with the same servers
FAULT_SECONDS_MAX = 6.0  # limit of a fault's duration
#: Threads and descriptors that a worker may have in addition to a new one: a thread for each stream,
#: and those of other request classes and of rendering, which stay for later requests.
SPARE = 3 * STREAMS


class System:
    """A Halt, its model's server and its database."""

    def __init__(self, kind: str, workers: int) -> None:
        self.kind = kind
        self.bystander: Bystander | None = None  # of the round
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="halt-chaos-"))
        self.folder = Path(folder)
        self.postgres: Postgres | None = None
        url = ""
        if kind == "postgres":
            self.postgres = self._stack.enter_context(Postgres())
            url = self.postgres.url
        self.model = UpstreamProcess()
        self._stack.callback(self.model.close)
        more = {"HALT_LOG_SECONDS": "1"}
        self.server = RestartableServer(self.model.base_url, self.folder, workers, url, **more)
        self._stack.callback(self._end)
        self.wait_recovered()
        self._healthy = self.server.client.get("/saving").body
        self._files = self._all_files()
        self._processes = len(tree(self.server.halt.process.pid))
        self._first_counts = self._counts()

    def _end(self) -> None:
        with contextlib.suppress(pytest.fail.Exception):
            self.server.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def address(self) -> tuple[str, int]:
        return self.server.halt.host, self.server.halt.port

    def wait_recovered(self) -> None:
        """Wait until the server answers again and all events are saved."""
        client = self.server.client
        wait_until(lambda: _status(client, "/conversations") == 200, 60)
        if hasattr(self, "_healthy"):
            wait_until(lambda: client.get("/saving").body == self._healthy, 60)

    def check_leftovers(self) -> None:
        """Require that threads, descriptors, processes and files are as before the round."""
        wait_until(lambda: len(self.server.workers) == len(self._first_counts), 60)
        master = self.server.halt.process.pid
        # Rendering processes stay for a while.
        most_processes = self._processes + PROCESSES * len(self._first_counts)
        wait_until(lambda: len(tree(master)) <= most_processes, 60)
        limits = (
            max(self._first_counts)[0] + SPARE,
            max(counts[1] for counts in self._first_counts) + SPARE,
        )
        for kind, limit in enumerate(limits):
            with contextlib.suppress(AssertionError):
                wait_until(lambda: all(figures[kind] <= limit for figures in self._counts()), 60)
            counts = self._counts()
            assert all(figures[kind] <= limit for figures in counts), f"{counts}, at most {limits}"
        spare = 4 * len(self._first_counts)  # each worker has its own files
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(self._all_files()) <= len(self._files) + spare, 60)
        new_files = self._all_files() - self._files
        assert len(new_files) <= spare, f"files are left: {sorted(new_files)}"

    def _counts(self) -> list[tuple[int, int]]:
        """Threads and descriptors of each worker."""
        return [(status(pid, "Threads"), descriptors(pid)) for pid in self.server.workers]

    def _all_files(self) -> set[str]:
        """All files except `.note` files, messages between workers that are removed later."""
        paths = (path for path in self.folder.rglob("*") if path.suffix != ".note")
        return {os.fspath(path.relative_to(self.folder)) for path in paths}


def _status(client: Client, path: str) -> int:
    try:
        return client.get(path).status
    except (OSError, http.client.HTTPException):
        return 0


# --- faults ---------------------------------------------------------------------------------------

#: Cause a fault and end it; returns when it began (`time.monotonic()`).
Fault = Callable[[System, random.Random], float]


def worker(system: System, rng: random.Random) -> float:
    """`kill -9` of a worker."""
    with prompt_during_kill(system.server.client):
        return system.server.kill_worker(rng)


def master(system: System, _: random.Random) -> float:
    """`kill -9` of the master; another server is started at once."""
    return system.server.kill_master()


def model(system: System, rng: random.Random) -> float:
    """`kill -9` of the model's server, which is started again later."""
    system.model.kill()
    at = time.monotonic()
    _hold(system, rng, 1.0, unknown=True)  # a known stream may have ended by the fault
    system.model.start()
    return at


def frozen(system: System, rng: random.Random) -> float:
    """The database does not answer for a while: it is locked, or its processes are stopped."""
    with system.postgres.frozen() if system.postgres else loads.lock_database(system.folder):
        at = time.monotonic()
        _hold(system, rng, FAULT_SECONDS_MAX)
    return at


def full(system: System, rng: random.Random) -> float:
    """No file of the workers can grow for a while."""
    pids = system.server.workers
    at = time.monotonic()
    with _limited(pids):
        _hold(system, rng, FAULT_SECONDS_MAX)
    return at


@contextlib.contextmanager
def _limited(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


def restarted(system: System, rng: random.Random) -> float:
    """PostgreSQL shuts down and is started again."""
    assert system.postgres is not None
    return _stop_database(system, rng, system.postgres.stop)


def killed(system: System, rng: random.Random) -> float:
    """`kill -9` of PostgreSQL, which is started again."""
    assert system.postgres is not None
    return _stop_database(system, rng, system.postgres.kill)


def _stop_database(system: System, rng: random.Random, end: Callable[[], object]) -> float:
    assert system.postgres is not None
    end()
    at = time.monotonic()
    _hold(system, rng, FAULT_SECONDS_MAX / 2)
    system.postgres.start()
    return at


def read_only(system: System, rng: random.Random) -> float:
    """PostgreSQL refuses writes for a while."""
    assert system.postgres is not None
    system.postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    system.postgres.execute("SELECT pg_reload_conf()")
    at = time.monotonic()
    _hold(system, rng, FAULT_SECONDS_MAX)
    system.postgres.execute("SET default_transaction_read_only = off", "ALTER SYSTEM RESET ALL")
    system.postgres.execute("SELECT pg_reload_conf()")
    return at


def _hold(system: System, rng: random.Random, max_seconds: float, unknown: bool = False) -> None:
    """Let a fault last, and send a Stop meanwhile, which must not wait for the end of the fault."""
    deadline = time.monotonic() + rng.uniform(0.1, max_seconds)
    assert system.bystander is not None
    seconds = system.bystander.stop(STOP_WITHIN + 5, unknown)
    assert seconds < STOP_WITHIN, f"Stop took {seconds:.1f} s"
    time.sleep(max(0.0, deadline - time.monotonic()))


ANYWHERE: dict[str, Fault] = {
    "worker": worker,
    "master": master,
    "model": model,
    "frozen": frozen,
}
FAULTS: dict[str, dict[str, Fault]] = {
    "sqlite": {**ANYWHERE, "full": full},
    "postgres": {**ANYWHERE, "restarted": restarted, "killed": killed, "read_only": read_only},
}


# --- rounds ---------------------------------------------------------------------------------------


def run_round(system: System, name: str, rng: random.Random, may_lose: float) -> None:
    """Run one round. Raises the first failure."""
    with contextlib.ExitStack() as stack:
        if name not in {"worker", "master"}:  # other faults kill no producer
            system.bystander = stack.enter_context(Bystander(system.address, 1))
        group = start_streams(system.server.client, count=STREAMS, may_lose=may_lose)
        group.wait_tokens(rng.randrange(100 * STREAMS))
        at = FAULTS[system.kind][name](system, rng)
    system.wait_recovered()
    check_streams(group, system.server.client, system.server.database, at)
    system.check_leftovers()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--round", type=int, help="only this round of the seed's")
    parser.add_argument("--only", action="append", help="only these faults")
    parser.add_argument("--database", choices=FAULTS, action="append")
    parser.add_argument("--may-lose", type=float, default=0.25, metavar="SECONDS")
    parser.add_argument("--findings", type=Path, default=Path("chaos-findings"), metavar="FOLDER")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that each `with` block ends
    kinds = options.database or ["sqlite", *(["postgres"] if postgres_programs() else [])]
    print(f"seed {options.seed}", flush=True)
    deadline = time.monotonic() + 60 * options.minutes
    number, finding_count, system, rounds_used = options.round or 0, 0, None, 0
    with tempfile.TemporaryDirectory(prefix="halt-chaos-") as data:
        os.environ["XDG_DATA_HOME"] = os.environ["HALT_DATA"] = data
        try:
            while time.monotonic() < deadline:
                rng = random.Random(f"{options.seed}-{number}")
                kind = kinds[number // ROUNDS % len(kinds)]
                workers = 1 + number // ROUNDS % 2
                names = [n for n in FAULTS[kind] if not options.only or n in options.only]
                name = rng.choice(names)
                if system is None or rounds_used >= ROUNDS or system.kind != kind:
                    if system is not None:
                        system.close()
                    system, rounds_used = System(kind, workers), 0
                start = time.monotonic()
                try:
                    run_round(system, name, rng, options.may_lose)
                    result = "passed"
                except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a finding
                    finding_count += 1
                    result = f"FOUND, see {_saved(options, number, kind, name, system)}"
                    system.close()
                    system = None
                seconds = time.monotonic() - start
                print(f"round {number}: {kind}, {name}: {result} ({seconds:.1f} s)", flush=True)
                number, rounds_used = number + 1, rounds_used + 1
                if options.round is not None:
                    break
        finally:
            if system is not None:
                system.close()
    print(f"{finding_count} found", flush=True)
    return 1 if finding_count else 0


def _saved(options: argparse.Namespace, number: int, kind: str, name: str, system: System) -> Path:
    """Save the finding with the command that repeats it; the file's path."""
    options.findings.mkdir(exist_ok=True)
    path: Path = options.findings / f"{options.seed}-{number}-{kind}-{name}.txt"
    command = f"python -m tests.chaos --seed {options.seed} --round {number} --database {kind}"
    printed = system.server.halt.printed[-20_000:]
    path.write_text(f"{command}\n\n{traceback.format_exc()}\n\nHalt printed:\n{printed}")
    return path


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.chaos`: faults at random moments under load; status 1 when one does harm.

Each round begins streams of numbered tokens, from pages and from programs, lets one part fail while
they flow, brings it back, and looks: every answer that was seen is there, at most --may-lose seconds
of text short where a process was killed, with exactly one end; and no thread, descriptor, process or
file is left. `--seed N --round K` repeats a round. What was found is written to --findings.
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
from tests.chaos.streams import Mortal, OfItsOwn, all_is_well, in_progress, newcomer
from tests.resilience import loads
from tests.resilience.bystander import STOP_WITHIN, Bystander
from tests.resilience.servers import (
    Postgres,
    postgres_programs,
)
from tests.support.halt_server import eventually
from tests.support.http_client import Client
from tests.support.process_facts import descriptors, status, tree

STREAMS = 12  # in each round
ROUNDS = 15  # with the same servers
HOLDS_MAX = 6.0  # seconds that a fault lasts
#: Threads and descriptors that a worker may have more than when it was new: a thread for each stream,
#: and those of the other classes of requests and of rendering, which stay for the next one.
SPARE = 3 * STREAMS


class World:
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
        self.model = OfItsOwn()
        self._stack.callback(self.model.close)
        more = {"HALT_LOG_SECONDS": "1"}
        self.mortal = Mortal(self.model.base_url, self.folder, workers, url, **more)
        self._stack.callback(self._end)
        self.settle()
        self._well = self.mortal.client.get("/saving").body
        self._files = self._all_files()
        self._processes = len(tree(self.mortal.server.process.pid))
        self._held = self._holdings()

    def _end(self) -> None:
        with contextlib.suppress(pytest.fail.Exception):
            self.mortal.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def address(self) -> tuple[str, int]:
        return self.mortal.server.host, self.mortal.server.port

    def settle(self) -> None:
        """Wait until everything answers again, and all that was told is saved."""
        client = self.mortal.client
        eventually(lambda: _status(client, "/conversations") == 200, 60)
        if hasattr(self, "_well"):
            eventually(lambda: client.get("/saving").body == self._well, 60)

    def nothing_is_left(self) -> None:
        """Fails with what is left."""
        eventually(lambda: len(self.mortal.workers) == len(self._held), 60)
        below = self.mortal.server.process.pid
        # Those that render stay for a while.
        most_processes = self._processes + PROCESSES * len(self._held)
        eventually(lambda: len(tree(below)) <= most_processes, 60)
        most = max(self._held)[0] + SPARE, max(each[1] for each in self._held) + SPARE
        for what, limit in enumerate(most):
            with contextlib.suppress(AssertionError):
                eventually(lambda: all(each[what] <= limit for each in self._holdings()), 60)
            held = self._holdings()
            assert all(each[what] <= limit for each in held), f"{held}, and {most} at most"
        spare = 4 * len(self._held)  # a worker has files of its own
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(self._all_files()) <= len(self._files) + spare, 60)
        left = self._all_files() - self._files
        assert len(left) <= spare, f"files are left: {sorted(left)}"

    def _holdings(self) -> list[tuple[int, int]]:
        """Threads and descriptors of each worker."""
        return [(status(pid, "Threads"), descriptors(pid)) for pid in self.mortal.workers]

    def _all_files(self) -> set[str]:
        """All but the words that workers leave for later ones, which remove them in time."""
        found = (path for path in self.folder.rglob("*") if path.suffix != ".word")
        return {os.fspath(path.relative_to(self.folder)) for path in found}


def _status(client: Client, path: str) -> int:
    try:
        return client.get(path).status
    except (OSError, http.client.HTTPException):
        return 0


# --- faults ---------------------------------------------------------------------------------------

#: A fault and its end; when it began (`time.monotonic()`).
Fault = Callable[[World, random.Random], float]


def worker(world: World, chance: random.Random) -> float:
    """`kill -9` of a worker."""
    with newcomer(world.mortal.client):
        return world.mortal.kill_worker(chance)


def master(world: World, _: random.Random) -> float:
    """`kill -9` of the master; another server is started at once."""
    return world.mortal.kill_master()


def model(world: World, chance: random.Random) -> float:
    """`kill -9` of the model's server, which is away for a while."""
    world.model.kill()
    at = time.monotonic()
    _hold(world, chance, 1.0, unknown=True)  # any other may have ended by the fault, or by the Stop
    world.model.start()
    return at


def frozen(world: World, chance: random.Random) -> float:
    """The database answers nothing for a while: it is locked, or its processes are stopped."""
    with world.postgres.frozen() if world.postgres else loads.locked(world.folder):
        at = time.monotonic()
        _hold(world, chance, HOLDS_MAX)
    return at


def full(world: World, chance: random.Random) -> float:
    """No file of the workers' can grow for a while."""
    pids = world.mortal.workers
    at = time.monotonic()
    with _limited(pids):
        _hold(world, chance, HOLDS_MAX)
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


def restarted(world: World, chance: random.Random) -> float:
    """PostgreSQL is ended in order and comes back."""
    assert world.postgres is not None
    return _away(world, chance, world.postgres.stop)


def killed(world: World, chance: random.Random) -> float:
    """`kill -9` of PostgreSQL, which comes back."""
    assert world.postgres is not None
    return _away(world, chance, world.postgres.kill)


def _away(world: World, chance: random.Random, end: Callable[[], object]) -> float:
    assert world.postgres is not None
    end()
    at = time.monotonic()
    _hold(world, chance, HOLDS_MAX / 2)
    world.postgres.start()
    return at


def read_only(world: World, chance: random.Random) -> float:
    """PostgreSQL takes no writes for a while."""
    assert world.postgres is not None
    world.postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    world.postgres.execute("SELECT pg_reload_conf()")
    at = time.monotonic()
    _hold(world, chance, HOLDS_MAX)
    world.postgres.execute("SET default_transaction_read_only = off", "ALTER SYSTEM RESET ALL")
    world.postgres.execute("SELECT pg_reload_conf()")
    return at


def _hold(world: World, chance: random.Random, most: float, unknown: bool = False) -> None:
    """Let a fault last, and press a Stop meanwhile, which must not wait for its end."""
    until = time.monotonic() + chance.uniform(0.1, most)
    assert world.bystander is not None
    took = world.bystander.stop(STOP_WITHIN + 5, unknown)
    assert took < STOP_WITHIN, f"Stop took {took:.1f} s"
    time.sleep(max(0.0, until - time.monotonic()))


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


def play(world: World, name: str, chance: random.Random, may_lose: float) -> None:
    """One round. Raises what was found."""
    with contextlib.ExitStack() as stack:
        if name not in {"worker", "master"}:  # all others leave every stream's worker alone
            world.bystander = stack.enter_context(Bystander(world.address, 1))
        crowd = in_progress(world.mortal.client, count=STREAMS, may_lose=may_lose)
        crowd.wait_tokens(chance.randrange(100 * STREAMS))
        at = FAULTS[world.kind][name](world, chance)
    world.settle()
    all_is_well(crowd, world.mortal.client, world.mortal.database, at)
    world.nothing_is_left()


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through every `with`
    kinds = options.database or ["sqlite", *(["postgres"] if postgres_programs() else [])]
    print(f"seed {options.seed}", flush=True)
    until = time.monotonic() + 60 * options.minutes
    number, found, world, used = options.round or 0, 0, None, 0
    with tempfile.TemporaryDirectory(prefix="halt-chaos-") as data:
        os.environ["XDG_DATA_HOME"] = os.environ["HALT_DATA"] = data
        try:
            while time.monotonic() < until:
                chance = random.Random(f"{options.seed}-{number}")
                kind = kinds[number // ROUNDS % len(kinds)]
                workers = 1 + number // ROUNDS % 2
                names = [n for n in FAULTS[kind] if not options.only or n in options.only]
                name = chance.choice(names)
                if world is None or used >= ROUNDS or world.kind != kind:
                    if world is not None:
                        world.close()
                    world, used = World(kind, workers), 0
                began = time.monotonic()
                try:
                    play(world, name, chance, options.may_lose)
                    result = "well"
                except (Exception, pytest.fail.Exception):  # noqa: BLE001 - it is what we look for
                    found += 1
                    result = f"FOUND, see {_saved(options, number, kind, name, world)}"
                    world.close()
                    world = None
                seconds = time.monotonic() - began
                print(f"round {number}: {kind} {name} {result} ({seconds:.1f} s)", flush=True)
                number, used = number + 1, used + 1
                if options.round is not None:
                    break
        finally:
            if world is not None:
                world.close()
    print(f"{found} found", flush=True)
    return 1 if found else 0


def _saved(options: argparse.Namespace, number: int, kind: str, name: str, world: World) -> Path:
    """Write down what is needed to see it again."""
    options.findings.mkdir(exist_ok=True)
    path: Path = options.findings / f"{options.seed}-{number}-{kind}-{name}.txt"
    again = f"python -m tests.chaos --seed {options.seed} --round {number} --database {kind}"
    printed = world.mortal.server.printed[-20_000:]
    path.write_text(f"{again}\n\n{traceback.format_exc()}\n\nHalt printed:\n{printed}")
    return path


if __name__ == "__main__":
    sys.exit(main())

"""Stops and stream of one client while others cause load: one row for each load.

The loads are those of `tests/resilience`. Each has its own server and runs in its own process, so
that it shares only the interpreter of the server.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from bench.processes import HaltProcess, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, number, percentile, required
from tests.resilience import loads
from tests.resilience.bystander import Address, Bystander, NotAnswered
from tests.resilience.servers import LimitedServer, Postgres, descriptors_limited, postgres_programs
from tests.support.hostile_texts import HOSTILE_TEXTS, of_size
from tests.support.http_client import Client

TOKEN = "a-token-of-the-bench"
GIVEN_UP = 20.0  # seconds for one Stop
BEGINS_WITHIN = 120.0  # seconds for a load to begin
PAUSE = 0.03  # seconds between two Stops
TEXT = 200_000  # characters of a hostile text

_processes = multiprocessing.get_context("spawn")


class LoadedServer(NamedTuple):
    """The server under a load."""

    address: Address
    folder: Path
    postgres: tuple[int, ...]  # PostgreSQL's processes


MakeLoad = Callable[[LoadedServer], AbstractContextManager[object]]


@dataclass(frozen=True)
class Load:
    """A load, the settings of Halt, and the target for the response to a Stop in ms (p99)."""

    name: str
    make: MakeLoad
    target: float
    settings: dict[str, object] = field(default_factory=dict)
    few_descriptors: bool = False  # limit of 1,024 descriptors
    headers: dict[str, str] = field(default_factory=dict)
    postgres: bool = False
    victims: int = 100  # streams that are stopped; further Stops are for the same streams
    stops_unknown: bool = False  # send the Stops for unknown IDs


def _nothing(server: LoadedServer) -> AbstractContextManager[object]:
    return contextlib.nullcontext()


def _hostile_field_name(server: LoadedServer) -> AbstractContextManager[object]:
    requests = [
        request for case in loads.CASES["requests"] for request in loads.unknown_field(case)
    ]
    return loads.repeated(server.address, *requests)


def _repeat(read: Callable[[], object]) -> AbstractContextManager[object]:
    """A load that calls `read` repeatedly."""

    @contextlib.contextmanager
    def load() -> Iterator[None]:
        over = False

        def run() -> None:
            while not over:
                try:
                    read()
                except (OSError, NotAnswered):
                    time.sleep(0.1)

        with loads.calls(run):
            yield
            over = True

    return load()


def _costly_answer(name: str, readers: int = 1) -> MakeLoad:
    case = next(case for case in loads.CASES["answers"] if case["name"] == name)
    model = loads.repeated_text(case)
    return lambda server: _repeat(lambda: loads.read_page(server.address, model, readers))


def _each_hostile_text(server: LoadedServer) -> AbstractContextManager[object]:
    """One reader of each kind of hostile text, 200 kB each, one after the other."""
    models = itertools.cycle(
        [loads.repeated_text(of_size(case, TEXT)) for case in HOSTILE_TEXTS.values()]
    )
    return _repeat(lambda: loads.read_page(server.address, next(models)))


def _model(model: str) -> MakeLoad:
    def read(server: LoadedServer) -> None:
        with Client(*server.address).chat(model) as events:
            for _ in events:
                pass

    return lambda server: _repeat(lambda: read(server))


def _lingering_clients(server: LoadedServer) -> AbstractContextManager[object]:
    return loads.lingering(server.address, *loads.LAST_REQUESTS.values(), clients=4)


def _slow_bodies(server: LoadedServer) -> AbstractContextManager[object]:
    heads = loads.body_heads("/chat/stream")[1:] + loads.body_heads("/import")[1:]
    return loads.slow_bodies(server.address, heads)


def _slow_chunks(server: LoadedServer) -> AbstractContextManager[object]:
    return loads.slow_bodies(server.address, loads.body_heads("/chat/stream")[:1])


@contextlib.contextmanager
def _unread_pages(server: LoadedServer) -> Iterator[None]:
    client = Client(*server.address)
    client.get("/")
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    data = loads.upload("/import", loads.import_file(8_000_000), cookies)
    with loads.repeated(server.address, data, clients=1) as sent:
        (answer, *_) = sent.wait(1)
    path = loads.imported(answer)
    requests = [loads.message("GET", url, headers=cookies) for url in (path, f"{path}/export")]
    with loads.unread(server.address, requests):
        yield


def _prompts(server: LoadedServer) -> contextlib.AbstractContextManager[list[object]]:
    """40 prompts are sent at once when the context is entered."""
    client = Client(*server.address)
    client.get("/")
    return loads.calls(*[loads.send_prompt(server.address, client.cookies)] * 40)


@contextlib.contextmanager
def _locked_database(server: LoadedServer) -> Iterator[None]:
    with _prompts(server), loads.lock_database(server.folder):
        yield


@contextlib.contextmanager
def _frozen_postgres(server: LoadedServer) -> Iterator[None]:
    prompts = _prompts(server)
    for pid in server.postgres:
        os.kill(pid, signal.SIGSTOP)
    try:
        with prompts:
            yield
            _thaw(server.postgres)
    finally:
        _thaw(server.postgres)


def _thaw(processes: tuple[int, ...]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _import(server: LoadedServer) -> AbstractContextManager[object]:
    data = loads.upload("/import", loads.import_file(60_000_000))
    return loads.repeated(server.address, data, clients=1)


def _wrong_tokens(server: LoadedServer) -> AbstractContextManager[object]:
    wrong = {"Authorization": "Bearer wrong-one"}
    return loads.repeated(server.address, loads.message("GET", "/", headers=wrong), clients=8)


BLANKS = "repeat?before=%3Cthink%3Ex%3C/think%3E&unit=%0A&times=100000000&piece=1&burst=20"
NARROW: dict[str, object] = {"HALT_MAX_STREAMS": 20}

LOADS = [
    Load("nothing", _nothing, 100),
    Load("4 clients send a hostile name of a field (88 kB)", _hostile_field_name, 300),
    *(
        Load(f"an answer whose code is hard to colour ({name})", _costly_answer(name), 100)
        for name in ("bash-backslashes", "c-blanks", "docker-newlines")
    ),
    Load("a reader of hostile texts of 200 kB, one after the other", _each_hostile_text, 100),
    Load(
        "3 readers of 100,000 characters in 19 quotes", _costly_answer("quotes-lazy-lines", 3), 100
    ),
    Load(
        "4 clients at a time send requests and do not close after the response",
        _lingering_clients,
        300,
    ),
    Load("100 heads of 30 kB, byte by byte", lambda server: loads.slow_heads(server.address), 300),
    Load("60 bodies byte by byte, 20 streams allowed", _slow_bodies, 300, NARROW, victims=10),
    Load("60 bodies chunk by chunk, 20 streams allowed", _slow_chunks, 300, NARROW, victims=10),
    Load("60 unread pages of 8 MB, 20 streams allowed", _unread_pages, 300, NARROW, victims=10),
    Load(
        "2,000 silent connections, 1,024 descriptors",
        lambda server: loads.silent(server.address, 2000),
        1000,
        few_descriptors=True,
    ),
    Load(
        "a model writes nothing but blanks", _model(BLANKS), 100, {"HALT_MAX_ANSWER_CHARS": 100_000}
    ),
    Load("a model's line never ends", _model("endless_line"), 100),
    Load(
        "a model writes 2,000,000 deltas of one character",
        _model("repeat?unit=a&times=2000000&piece=1&burst=200"),
        100,
    ),
    Load("the database is locked, 40 people press Send", _locked_database, 100),
    Load(
        "4 clients send 300,000 fields",
        lambda server: loads.repeated(server.address, *loads.many_fields()),
        100,
    ),
    Load(
        "8 clients try wrong tokens",
        _wrong_tokens,
        100,
        {"HALT_TOKEN": TOKEN, "HALT_RATE_ADDRESS": "5/minute"},
        headers={"Authorization": f"Bearer {TOKEN}"},
        victims=3,
    ),
    Load("PostgreSQL is frozen, 40 people press Send", _frozen_postgres, 100, postgres=True),
    Load(
        "the same, Stops for IDs that no worker knows",
        _frozen_postgres,
        100,
        postgres=True,
        stops_unknown=True,
    ),
    Load("a conversation of 60 MB is imported again and again", _import, 300),
]


def stop_under_load(sizes: Sizes) -> Iterator[Row]:
    """Rows, one for each load."""
    with fake_upstream() as upstream:
        for index, load in enumerate(LOADS):
            if load.postgres and postgres_programs() is None:
                continue
            try:
                yield _row(index, load, upstream, sizes)
            except (OSError, NotAnswered, TimeoutError) as fault:  # continue with the other rows
                yield required(load.name, "", f"failed: {fault!r}"[:200], met=False)


class FewDescriptors(LimitedServer):
    """A Halt server with the usual number of descriptors of a login shell, 1,024."""

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env, descriptors_limited(1024))


class LimitedHaltProcess(HaltProcess):
    """A Halt with few descriptors; see `Load.few_descriptors`."""

    kind = FewDescriptors


def _row(index: int, load: Load, upstream: str, sizes: Sizes) -> Row:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="halt-bench-")))
        settings: dict[str, object] = {"HALT_DATA": folder, **load.settings}
        processes: tuple[int, ...] = ()
        postgres = None
        if load.postgres:
            postgres = stack.enter_context(Postgres())
            settings["DATABASE_URL"] = postgres.url
        kind: type[HaltProcess] = LimitedHaltProcess if load.few_descriptors else HaltProcess
        halt = stack.enter_context(kind(upstream, **settings))
        victims = min(sizes.stops_under_load, load.victims)
        bystander = stack.enter_context(Bystander(halt.address, victims, load.headers))
        if postgres is not None:
            processes = tuple(postgres.processes)
        ready, over = _processes.Event(), _processes.Event()
        server = LoadedServer(halt.address, folder, processes)
        process = _processes.Process(
            target=_run_load, args=(index, server, ready, over), daemon=True
        )
        process.start()
        try:
            if not ready.wait(BEGINS_WITHIN):
                raise TimeoutError(f"{load.name}: does not begin")
            bystander.mark()
            fault = _send_stops(bystander, load, sizes)
            gap = bystander.longest_gap * 1000
            lost = bystander.end_reason
        finally:
            over.set()
            process.join(30)
            if process.is_alive():
                process.kill()
            _thaw(processes)
    stops = [seconds * 1000 for seconds in bystander.stops] or [GIVEN_UP * 1000]
    p50, p99 = percentile(stops, 50), percentile(stops, 99)
    figure = f"{number(p50)} / {number(p99)} / {number(max(stops))} ms, {number(gap)} ms"
    if fault or lost:
        figure += f" **{fault or f'the stream was lost: {lost[:100]}'}**"
    met = not fault and not lost and p99 <= load.target
    return Row(
        f"Stop of another client, and its stream's longest gap: {load.name}",
        f"p99 ≤ {load.target:g} ms",
        f"p99 ≤ {load.target / 3:.0f} ms",
        figure,
        met,
        met and p99 <= load.target / 3,
        note=f"p50 / p99 / most of {len(stops)} Stops, each on a new connection, during the load; "
        "the stream has 50 tokens/s",
    )


def _send_stops(bystander: Bystander, load: Load, sizes: Sizes) -> str:
    """Send the Stops to be measured; return the fault that ended this early, else ""."""
    try:
        for _ in range(sizes.stops_under_load):
            bystander.stop(GIVEN_UP, unknown=load.stops_unknown)
            time.sleep(PAUSE)
    except NotAnswered as fault:
        return str(fault)[:120]
    return ""


def _run_load(index: int, server: LoadedServer, ready: Event, over: Event) -> None:
    """Body of the load's process: run the load until `over`; set `ready` when it has begun."""
    with LOADS[index].make(server):
        ready.set()
        over.wait()
    os._exit(0)

"""One client's Stops and stream beside whatever others do: one row for each load.

The loads are those of `tests/resilience`. Each runs in a process of its own, so that only the
server's interpreter is shared, and each has a server of its own.
"""

from __future__ import annotations

import contextlib
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

from bench.processes import Halt, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, number, percentile
from tests.resilience import loads
from tests.resilience.bystander import Address, Bystander, Held
from tests.resilience.servers import LimitedServer, Postgres, descriptors_limited, postgres_programs
from tests.support.sse import Client

TOKEN = "a-token-of-the-bench"
GIVEN_UP = 20.0  # seconds for one Stop
BEGINS_WITHIN = 120.0  # seconds for a load to be there
PAUSE = 0.03  # seconds between two Stops

_processes = multiprocessing.get_context("spawn")


class Where(NamedTuple):
    """What a load is for."""

    address: Address
    folder: Path
    postgres: tuple[int, ...]  # PostgreSQL's processes


Making = Callable[[Where], AbstractContextManager[object]]


@dataclass(frozen=True)
class Load:
    """A load, what Halt is started with, and within which time in ms a Stop has to be answered."""

    what: str
    make: Making
    target: float
    settings: dict[str, object] = field(default_factory=dict)
    few_descriptors: bool = False  # 1,024 of them
    headers: dict[str, str] = field(default_factory=dict)
    postgres: bool = False
    victims: int = 100  # streams that are stopped; further Stops are for the same ones
    stops_unknown: bool = False  # the Stops are for IDs that no worker knows


def _nothing(where: Where) -> AbstractContextManager[object]:
    return contextlib.nullcontext()


def _hostile_field(where: Where) -> AbstractContextManager[object]:
    requests = [each for case in loads.CASES["requests"] for each in loads.unknown_field(case)]
    return loads.repeated(where.address, *requests)


def _again(read: Callable[[], object]) -> AbstractContextManager[object]:
    """Do this again and again."""

    @contextlib.contextmanager
    def load() -> Iterator[None]:
        over = False

        def run() -> None:
            while not over:
                try:
                    read()
                except (OSError, Held):
                    time.sleep(0.1)

        with loads.calls(run):
            yield
            over = True

    return load()


def _answer(name: str, readers: int = 1) -> Making:
    case = next(each for each in loads.CASES["answers"] if each["name"] == name)
    model = loads.repeated_text(case)
    return lambda where: _again(lambda: loads.read_page(where.address, model, readers))


def _model(model: str) -> Making:
    def read(where: Where) -> None:
        with Client(*where.address).chat(model) as events:
            for _ in events:
                pass

    return lambda where: _again(lambda: read(where))


def _lingering(where: Where) -> AbstractContextManager[object]:
    return loads.lingering(where.address, *loads.LAST_REQUESTS.values(), clients=4)


def _slow_bodies(where: Where) -> AbstractContextManager[object]:
    heads = loads.body_heads("/chat/stream")[1:] + loads.body_heads("/import")[1:]
    return loads.slow_bodies(where.address, heads)


def _slow_chunks(where: Where) -> AbstractContextManager[object]:
    return loads.slow_bodies(where.address, loads.body_heads("/chat/stream")[:1])


@contextlib.contextmanager
def _unread(where: Where) -> Iterator[None]:
    client = Client(*where.address)
    client.get("/")
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    data = loads.upload("/import", loads.import_file(8_000_000), cookies)
    with loads.repeated(where.address, data, clients=1) as sent:
        (answer, *_) = sent.wait(1)
    path = loads.imported(answer)
    requests = [loads.message("GET", each, headers=cookies) for each in (path, f"{path}/export")]
    with loads.unread(where.address, requests):
        yield


def _prompts(where: Where) -> contextlib.AbstractContextManager[list[object]]:
    """40 people press Send at once when it is entered."""
    client = Client(*where.address)
    client.get("/")
    return loads.calls(*[loads.send_prompt(where.address, client.cookies)] * 40)


@contextlib.contextmanager
def _locked(where: Where) -> Iterator[None]:
    with _prompts(where), loads.locked(where.folder):
        yield


@contextlib.contextmanager
def _frozen(where: Where) -> Iterator[None]:
    crowd = _prompts(where)
    for pid in where.postgres:
        os.kill(pid, signal.SIGSTOP)
    try:
        with crowd:
            yield
            _thaw(where.postgres)
    finally:
        _thaw(where.postgres)


def _thaw(processes: tuple[int, ...]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _import(where: Where) -> AbstractContextManager[object]:
    data = loads.upload("/import", loads.import_file(60_000_000))
    return loads.repeated(where.address, data, clients=1)


def _wrong_tokens(where: Where) -> AbstractContextManager[object]:
    wrong = {"Authorization": "Bearer wrong-one"}
    return loads.repeated(where.address, loads.message("GET", "/", headers=wrong), clients=8)


BLANKS = "repeat?before=%3Cthink%3Ex%3C/think%3E&unit=%0A&times=100000000&piece=1&burst=20"
NARROW: dict[str, object] = {"HALT_MAX_STREAMS": 20}

LOADS = [
    Load("nothing", _nothing, 100),
    Load("4 clients send a hostile name of a field (88 kB)", _hostile_field, 300),
    *(
        Load(f"an answer whose code is hard to colour ({name})", _answer(name), 300)
        for name in ("bash-backslashes", "c-blanks", "docker-newlines")
    ),
    Load("3 readers of 100,000 characters in 19 quotes", _answer("quotes-lazy-lines", 3), 100),
    Load("4 clients at a time ask, are answered, and do not close", _lingering, 300),
    Load("100 heads of 30 kB, byte by byte", lambda where: loads.slow_heads(where.address), 300),
    Load("60 bodies byte by byte, 20 streams allowed", _slow_bodies, 300, NARROW, victims=10),
    Load("60 bodies chunk by chunk, 20 streams allowed", _slow_chunks, 300, NARROW, victims=10),
    Load("60 unread pages of 8 MB, 20 streams allowed", _unread, 300, NARROW, victims=10),
    Load(
        "2,000 silent connections, 1,024 descriptors",
        lambda where: loads.silent(where.address, 2000),
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
    Load("the database is locked, 40 people press Send", _locked, 100),
    Load(
        "4 clients send 300,000 fields",
        lambda where: loads.repeated(where.address, *loads.many_fields()),
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
    Load("PostgreSQL is frozen, 40 people press Send", _frozen, 100, postgres=True),
    Load(
        "the same, Stops for IDs that no worker knows",
        _frozen,
        100,
        postgres=True,
        stops_unknown=True,
    ),
    Load("a conversation of 60 MB is imported again and again", _import, 300),
]


def held(sizes: Sizes) -> Iterator[Row]:
    """A row for each load."""
    with fake_upstream() as upstream:
        for index, load in enumerate(LOADS):
            if load.postgres and postgres_programs() is None:
                continue
            try:
                yield _row(index, load, upstream, sizes)
            except (OSError, Held, TimeoutError) as fault:  # the other rows are worth their time
                yield Row(load.what, "", "", f"failed: {fault!r}"[:200], met=False)


class FewDescriptors(LimitedServer):
    """Halt with as many as a login shell usually has."""

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env, descriptors_limited(1024))


class LimitedHalt(Halt):
    """One with fewer descriptors; see `Load.few_descriptors`."""

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
        kind: type[Halt] = LimitedHalt if load.few_descriptors else Halt
        halt = stack.enter_context(kind(upstream, **settings))
        victims = min(sizes.held_stops, load.victims)
        bystander = stack.enter_context(Bystander(halt.address, victims, load.headers))
        if postgres is not None:
            processes = tuple(postgres.processes)
        ready, over = _processes.Event(), _processes.Event()
        where = Where(halt.address, folder, processes)
        process = _processes.Process(target=_hold, args=(index, where, ready, over), daemon=True)
        process.start()
        try:
            if not ready.wait(BEGINS_WITHIN):
                raise TimeoutError(f"{load.what}: does not begin")
            bystander.mark()
            fault = _press(bystander, load, sizes)
            gap = bystander.longest_gap * 1000
            lost = bystander.lost
        finally:
            over.set()
            process.join(30)
            if process.is_alive():
                process.kill()
            _thaw(processes)
    stops = [each * 1000 for each in bystander.stops] or [GIVEN_UP * 1000]
    p50, p99 = percentile(stops, 50), percentile(stops, 99)
    figure = f"{number(p50)} / {number(p99)} / {number(max(stops))} ms, {number(gap)} ms"
    if fault or lost:
        figure += f" **{fault or f'the stream was lost: {lost[:100]}'}**"
    met = not fault and not lost and p99 <= load.target
    return Row(
        f"Stop of another client, and its stream's longest gap: {load.what}",
        f"p99 ≤ {load.target:g} ms",
        f"p99 ≤ {load.target / 3:.0f} ms",
        figure,
        met,
        met and p99 <= load.target / 3,
        note=f"p50 / p99 / most of {len(stops)} Stops, each on a new connection, while the load was "
        "there; the stream has 50 tokens/s",
    )


def _press(bystander: Bystander, load: Load, sizes: Sizes) -> str:
    """Press Stop as often as is to be measured; why there were no more, if that is so."""
    try:
        for _ in range(sizes.held_stops):
            bystander.stop(GIVEN_UP, unknown=load.stops_unknown)
            time.sleep(PAUSE)
    except Held as fault:
        return str(fault)[:120]
    return ""


def _hold(index: int, where: Where, ready: Event, over: Event) -> None:
    """In a process of its own: the load, from `ready` until `over`."""
    with LOADS[index].make(where):
        ready.set()
        over.wait()
    os._exit(0)

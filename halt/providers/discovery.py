"""Looks for model servers where no provider is set: at their usual ports of this machine, and at
the addresses that HALT_DISCOVER names.

Each address gets one GET /v1/models, all at once, without proxy, redirect, cookie or key. The
answer counts where it is a JSON object with a list `data`. A JSON refusal with status 401 is a
server that needs a key. Any other answer, and silence, is left alone for a minute; an address where
nothing listens is asked again with the next look.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import ssl
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import httpx2
import msgspec

from halt import VERSION
from halt.clock import now
from halt.config.addresses import is_loopback
from halt.config.model_servers import (
    LISTS_LOADED,
    LOOPBACK,
    USUAL,
    Found,
    Locked,
    Names,
    Server,
    decoded,
    origin,
    product_of,
)
from halt.config.settings import Config
from halt.core.connection import Line, on_line
from halt.errors import TOKEN_NEEDED, Interrupted
from halt.providers.cached_query import CachedQuery
from halt.providers.loose_json import as_object, as_objects
from halt.providers.model_list import Model, is_name, parse_models
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

PROBE_SECONDS = 0.3  # for all addresses together
JOIN_SECONDS = 0.1  # for their threads to notice that the time is over
REFRESH_INTERVAL = 3.0  # seconds between two looks
MISSED_INTERVAL = 0.5  # the same, where a model is asked for that none is known to have
BACKOFF_SECONDS = 60.0  # seconds that an address is not asked, after an answer that is no list
BODY_MAX = REFUSAL_MAX  # bytes of an answer
REFRESH_MAX = 3.0  # seconds for a look as a whole; the process in which the master looks is killed

logger = logging.getLogger(__name__)

HEADERS = {"Accept": "application/json", "User-Agent": f"halt/{VERSION}"}


def discovery_addresses(config: Config, listens: Sequence[Any]) -> tuple[str, ...]:
    """The addresses that are asked, none where discovery is off or a provider is set.

    `listens`: where the server listens, as gunicorn has it: (host, port), or the path of a Unix
    socket; anything else may be reached from anywhere. The usual ports are asked only where Halt is
    reached from this machine alone, as those servers are. Halt's own ports are never asked.
    """
    if not config.discovers:
        return ()
    ports = {place[1] for place in listens if isinstance(place, tuple)}
    is_local = all(
        is_loopback(place[0]) if isinstance(place, tuple) else isinstance(place, str)
        for place in listens
    )
    usual = USUAL if is_local else ()
    named = (url.replace("//localhost:", f"//{LOOPBACK}:") for url in config.discover_addresses)
    return tuple(url for url in dict.fromkeys((*usual, *named)) if not _is_own(url, ports))


def _is_own(url: str, ports: set[int]) -> bool:
    parts = urlsplit(url)
    return parts.port in ports and is_loopback(parts.hostname or "")


def discover_for(config: Config) -> Found:
    """One look at the addresses of the settings, for a program that does not listen itself."""
    return Discovery(Found(addresses=discovery_addresses(config, [(config.host, 0)]))).refresh_now()


def make_discovery(config: Config, mark: str = "") -> Discovery | None:
    """What goes on looking where the master began; None where nothing is looked for.

    Where there was no master the usual ports are not asked: where such a server listens is unknown.
    """
    if config.discovered and config.discovers:
        found = decoded(config.discovered)
    else:
        found = Found(addresses=discovery_addresses(config, [None]))
    return Discovery(found, mark) if found.addresses else None


class Discovery:
    """The model servers at some addresses, with one look at a time. Threads may share one."""

    def __init__(self, found: Found, mark: str = "") -> None:
        """`found`: the addresses, and what an earlier look found there. `mark`: see
        `halt.core.via`."""
        self._mark = mark
        self._names = Names(found.addresses)
        self._found = found
        self._looked_at = float("-inf")
        # The thread that looks, of which there is one at a time, has these three:
        self._servers = {server.url: server for server in found.servers}
        self._locked = {each.url for each in found.locked}
        self._left_until = dict(found.left_until)
        self._query = CachedQuery(
            "model-servers",
            lambda _: self.refresh_now(),
            answer_seconds=REFRESH_INTERVAL,
            fault_seconds=REFRESH_INTERVAL,
            timeout=REFRESH_MAX,
        )

    @property
    def latest(self) -> Found:
        """What the last look found."""
        return self._found

    def refresh(self, *, missed: bool = False) -> Found:
        """What there is now. Waits half a second at most, and not where a look has just ended.

        `missed`: a model is asked for that none is known to have. Another worker may know it, so
        MISSED_INTERVAL seconds between two looks are enough.
        """
        if missed and now() - self._looked_at >= MISSED_INTERVAL:
            self._query.expire()
        asked_at = self._query.start()
        self._query.wait(asked_at + PROBE_SECONDS + 2 * JOIN_SECONDS, fresh=True)
        return self._found

    def refresh_now(self) -> Found:
        """One look, made in this thread whenever the last one was; for one thread at a time."""
        self._looked_at = started_at = now()
        due = [
            url
            for url in self._found.addresses
            if self._left_until.get(url, started_at) <= started_at
        ]
        answers = _ask_all(due, self._mark)
        for url in due:
            self._left_until.pop(url, None)
            self._locked.discard(url)
            self._learn(url, answers.get(url))
        addresses = self._found.addresses
        self._found = Found(
            addresses=addresses,
            servers=tuple(self._servers[url] for url in addresses if url in self._servers),
            locked=tuple(Locked(url=url) for url in addresses if url in self._locked),
            left_until=dict(self._left_until),
        )
        return self._found

    def _learn(self, url: str, answer: _ProbeResult | None) -> None:
        if answer is not None and answer.models is not None:
            self._servers[url] = self._server(url, answer)
        elif answer is not None and answer.is_away:
            self._servers.pop(url, None)
        elif url not in self._servers:  # one that was found is busy, or starts again
            self._left_until[url] = now() + BACKOFF_SECONDS
            if answer is not None and answer.is_locked:
                self._locked.add(url)

    def _server(self, url: str, answer: _ProbeResult) -> Server:
        models = answer.models or []
        name, title = self._names.of(url, [model.owner for model in models])
        # Others could not be asked for, nor be handed on: JSON takes no half of a character.
        models = [model for model in models if is_name(f"{name}/{model.name}")]
        chatting = [model.name for model in models if model.chats]
        loaded = [model for model in chatting if model in answer.loaded]
        return Server(
            name=name,
            title=title,
            url=url,
            models=tuple(model.name for model in models),
            default=(loaded or chatting or [""])[0],
            is_loaded=bool(loaded),
        )


def discover_at_start(addresses: tuple[str, ...], mark: str = "") -> Found:
    """One look, in a process of its own: no thread is left in this one, which is about to fork.

    The look-up of a name would leave one that nothing can end.
    """
    found = Found(addresses=addresses)
    if not addresses:
        return found
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _look_as_child(Discovery(found, mark), writer)
    os.close(writer)
    try:
        written = _read_all(reader, now() + REFRESH_MAX)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        os.waitpid(child, 0)
    return decoded(written.decode()) if written.endswith(b"}") else found


def _look_as_child(discovery: Discovery, writer: int) -> NoReturn:
    try:
        with open(writer, "wb") as answer:
            answer.write(msgspec.json.encode(discovery.refresh_now()))
    except Exception:
        logger.exception("model servers")
    finally:
        os._exit(0)


def _read_all(reader: int, until: float) -> bytes:
    """What is written to a pipe until it is closed or `until` comes."""
    parts = []
    while select.select([reader], [], [], max(0.0, until - now()))[0]:
        part = os.read(reader, 65_536)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


# --- one look -------------------------------------------------------------------------------------


class _ProbeResult(NamedTuple):
    """What an address answered, where that was in time. All of it false: no model server."""

    models: list[Model] | None = None
    loaded: frozenset[str] = frozenset()  # names of models that are in memory
    is_locked: bool = False  # a key is needed
    is_away: bool = False  # nothing listens, or it says that it starts


def _ask_all(urls: Sequence[str], mark: str) -> dict[str, _ProbeResult]:
    """Their answers as far as they came in PROBE_SECONDS."""
    until = now() + PROBE_SECONDS
    # To read the certificates takes 20 ms, and the rest of a look 3 ms.
    is_plain = all(url.startswith("http://") for url in urls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else None
    transport = Transport(PROBE_SECONDS, context, mark, direct=True)
    answers: dict[str, _ProbeResult] = {}  # each thread sets its own

    def ask(url: str, line: Line) -> None:
        try:
            with on_line(line):
                answers[url] = answer = _ask(transport, url)
                if answer.models:
                    loaded = answer.loaded | _loaded(transport, url, answer.models)
                    answers[url] = answer._replace(loaded=loaded)
        except (Interrupted, httpx2.HTTPError):
            pass  # what is there of its answer counts
        except Exception:
            logger.exception("%s", url)

    lines = {url: Line() for url in urls}
    threads = []
    for url, line in lines.items():
        thread = threading.Thread(target=ask, args=(url, line), name="halt-look", daemon=True)
        with contextlib.suppress(RuntimeError):  # the system has no more threads
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, until - now()))
    for line in lines.values():
        line.interrupt()
    for thread in threads:
        thread.join(max(0.0, until + JOIN_SECONDS - now()))
    transport.close()
    return dict(answers)


def _ask(transport: Transport, url: str) -> _ProbeResult:
    """The models at an address. Raises httpx2's errors, Interrupted."""
    try:
        status, value = _get(transport, f"{url}/models")
    except httpx2.ConnectError:
        return _ProbeResult(is_away=True)
    if status == 503:  # llama.cpp that loads its model
        return _ProbeResult(is_away=True)
    if status == 401 and isinstance(value, dict):
        return _ProbeResult(is_locked=TOKEN_NEEDED not in str(value))  # else it is another Halt
    if status != 200 or not isinstance(value, dict):
        return _ProbeResult()
    listed = value.get("data", value)  # Ollama without a model says null
    if listed is not None and not isinstance(listed, list):
        return _ProbeResult()
    models = parse_models({"data": listed}) or []
    if (listed and not models) or any(model.owner == "halt" for model in models):
        return _ProbeResult()
    return _ProbeResult(models, _marked_loaded(url, listed or [], models))


def _marked_loaded(url: str, items: list[Any], models: list[Model]) -> frozenset[str]:
    """The models that a list itself tells to be in memory."""
    by_status = {  # llama.cpp's router
        item["id"]: item["status"].get("value") == "loaded"
        for item in as_objects(items)
        if isinstance(item.get("id"), str) and isinstance(item.get("status"), dict)
    }
    if by_status:
        return frozenset(name for name, is_loaded in by_status.items() if is_loaded)
    product = product_of(url, [model.owner for model in models])
    if product is None or product.name not in LISTS_LOADED:
        return frozenset()
    return frozenset(model.name for model in models)


def _loaded(transport: Transport, url: str, models: list[Model]) -> frozenset[str]:
    """The models that a server of a known product has in memory, by its own API."""
    product = product_of(url, [model.owner for model in models])
    name = product.name if product else ""
    if name == "ollama":
        _, value = _get(transport, f"{origin(url)}/api/ps")
        return frozenset(model.name for model in parse_models(value) or [])
    if name == "lmstudio":
        _, value = _get(transport, f"{origin(url)}/api/v0/models")
        items = as_objects(as_object(value).get("data"))
        return frozenset(str(each.get("id")) for each in items if each.get("state") == "loaded")
    return frozenset()


def _get(transport: Transport, url: str) -> tuple[int, Any]:
    """Status and decoded JSON, None where the body is none. Raises httpx2's errors, Interrupted."""
    response = transport.handle_request(httpx2.Request("GET", url, headers=HEADERS))
    body = response.extensions["halt.body"]
    assert isinstance(body, Body)  # noqa: S101 - our own transport put it there
    try:
        whole = body.read_all(BODY_MAX)
    finally:
        body.close()
    try:
        return response.status_code, None if whole is None else json.loads(whole)
    except (ValueError, RecursionError):
        return response.status_code, None

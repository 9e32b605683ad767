"""Finds model servers if no provider is configured.

It probes the usual ports of this machine, and the addresses in HALT_DISCOVER.

Each address gets one GET /v1/models, all in parallel, without proxy, redirect, cookie or key. A
JSON object with a list `data` is a model server. A JSON refusal with status 401 is a server that
needs a key. After any other answer, or none, the address is not probed for BACKOFF_SECONDS. An
address where nothing listens is probed again with the next refresh.
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
    USUAL_URLS,
    DiscoveryResult,
    KeyRequired,
    Names,
    Server,
    decoded,
    origin,
    product_of,
)
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection, use_connection
from halt.errors import TOKEN_NEEDED_BEGINNING, Interrupted
from halt.model_info import UNKNOWN
from halt.providers.cached_query import CachedQuery
from halt.providers.loose_json import as_object, as_objects
from halt.providers.model_list import Model, is_name, parse_models
from halt.transport.address_policy import AddressRefused
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

PROBE_SECONDS = 0.3  # for all addresses together
JOIN_SECONDS = 0.1  # for the probe threads to notice that they were interrupted
REFRESH_INTERVAL = 3.0  # seconds between two refreshes
MISSED_INTERVAL = 0.5  # the same, after a request for a model that no known server has
BACKOFF_SECONDS = 60.0  # without a probe, after an answer that is no list
BODY_MAX = REFUSAL_MAX  # bytes of an answer
REFRESH_MAX = 3.0  # seconds for a whole refresh; then the master kills its child that refreshes

logger = logging.getLogger(__name__)

HEADERS = {"Accept": "application/json", "User-Agent": f"halt/{VERSION}"}


def discovery_addresses(config: Config, listens: Sequence[Any]) -> tuple[str, ...]:
    """Return the addresses to probe, none if discovery is off or a provider is configured.

    `listens`: where the server listens, in gunicorn's format: (host, port), or the path of a Unix
    socket; any other value counts as reachable from anywhere. The usual ports are probed only if
    Halt, like those servers, is reachable from this machine alone. Halt's own ports are never
    probed.
    """
    if not config.discovers:
        return ()
    ports = {address[1] for address in listens if isinstance(address, tuple)}
    is_local = all(
        is_loopback(address[0]) if isinstance(address, tuple) else isinstance(address, str)
        for address in listens
    )
    default_urls = USUAL_URLS if is_local else ()
    configured = (
        url.replace("//localhost:", f"//{LOOPBACK}:") for url in config.discover_addresses
    )
    return tuple(
        url for url in dict.fromkeys((*default_urls, *configured)) if not _is_own(url, ports)
    )


def _is_own(url: str, ports: set[int]) -> bool:
    parts = urlsplit(url)
    return parts.port in ports and is_loopback(parts.hostname or "")


def discover_for(config: Config) -> DiscoveryResult:
    """Probe the addresses of the settings once, for a program that does not listen itself."""
    result = DiscoveryResult(addresses=discovery_addresses(config, [(config.host, 0)]))
    return Discovery(result, allow_link_local=config.allow_link_local).refresh_now()


def make_discovery(config: Config, instance_id: str = "") -> Discovery | None:
    """Create a worker's Discovery from the master's result; None if there is nothing to probe.

    Without such a result the usual ports are not probed, since it is unknown where Halt listens.
    """
    if config.discovered and config.discovers:
        result = decoded(config.discovered)
    else:
        result = DiscoveryResult(addresses=discovery_addresses(config, [None]))
    if not result.addresses:
        return None
    return Discovery(result, instance_id, allow_link_local=config.allow_link_local)


class Discovery:
    """The model servers at some addresses. Threads may share one; one refresh runs at a time."""

    def __init__(
        self, result: DiscoveryResult, instance_id: str = "", *, allow_link_local: bool = False
    ) -> None:
        """`result`: the addresses, and the servers of an earlier refresh.

        `instance_id`, `allow_link_local`: as of `halt.transport.pool.Transport`.
        """
        self._instance_id = instance_id
        self._allow_link_local = allow_link_local
        self._names = Names(result.addresses)
        self._result = result
        self._refreshed_at = float("-inf")
        # Only the refreshing thread uses these three; there is one at a time:
        self._servers = {server.url: server for server in result.servers}
        self._key_required = {server.url for server in result.key_required}
        self._skipped_until = dict(result.skipped_until)
        #: Whether the next refresh skips no address. Any thread sets it, the refreshing one clears
        #: it; set while a refresh runs, it is for the one after it.
        self._is_everywhere = False
        self._query = CachedQuery(
            "model-servers",
            lambda _: self.refresh_now(),
            answer_seconds=REFRESH_INTERVAL,
            fault_seconds=REFRESH_INTERVAL,
            timeout=REFRESH_MAX,
        )

    @property
    def latest(self) -> DiscoveryResult:
        """The result of the last refresh."""
        return self._result

    def refresh(self, *, missed: bool = False, everywhere: bool = False) -> DiscoveryResult:
        """Return a fresh result. Waits 0.5 s at most, and not at all if a refresh has just ended.

        `missed`: a request names a model that no known server has. Another worker may know it, so
        MISSED_INTERVAL applies in place of REFRESH_INTERVAL. `everywhere`: the next refresh also
        probes addresses that it would skip after their last answer.
        """
        if everywhere:
            self._is_everywhere = True
        if missed and now() - self._refreshed_at >= MISSED_INTERVAL:
            self._query.expire()
        started_at = self._query.start()
        self._query.wait(started_at + PROBE_SECONDS + 2 * JOIN_SECONDS, fresh=True)
        return self._result

    def refresh_now(self) -> DiscoveryResult:
        """Probe in this thread, however recent the last refresh; for one thread at a time."""
        self._refreshed_at = started_at = now()
        if self._is_everywhere:
            self._is_everywhere = False
            self._skipped_until.clear()
        due_urls = [
            url
            for url in self._result.addresses
            if self._skipped_until.get(url, started_at) <= started_at
        ]
        results = _probe_all(due_urls, self._instance_id, allow_link_local=self._allow_link_local)
        for url in due_urls:
            self._skipped_until.pop(url, None)
            self._key_required.discard(url)
            self._store(url, results.get(url))
        addresses = self._result.addresses
        self._result = DiscoveryResult(
            addresses=addresses,
            servers=tuple(self._servers[url] for url in addresses if url in self._servers),
            key_required=tuple(
                KeyRequired(url=url) for url in addresses if url in self._key_required
            ),
            skipped_until=dict(self._skipped_until),
        )
        return self._result

    def _store(self, url: str, result: _ProbeResult | None) -> None:
        if result is not None and result.models is not None:
            self._servers[url] = self._server(url, result)
        elif result is not None and result.is_away:
            self._servers.pop(url, None)
        elif url not in self._servers:  # a known server is busy or restarting: it stays
            self._skipped_until[url] = now() + BACKOFF_SECONDS
            if result is not None and result.needs_key:
                self._key_required.add(url)

    def _server(self, url: str, result: _ProbeResult) -> Server:
        models = result.models or []
        name, title = self._names.of(url, [model.owned_by for model in models])
        # Drop names that no request may have. JSON could not hold them all: a lone surrogate is
        # not valid in it.
        models = [model for model in models if is_name(f"{name}/{model.name}")]
        chat_models = [model.name for model in models if model.can_chat]
        loaded = [model for model in chat_models if model in result.loaded]
        return Server(
            name=name,
            title=title,
            url=url,
            models=tuple(model.name for model in models),
            abilities={
                model.name: model.abilities for model in models if model.abilities != UNKNOWN
            },
            default=(loaded or chat_models or [""])[0],
            is_loaded=bool(loaded),
        )


def discover_at_start(
    addresses: tuple[str, ...], instance_id: str = "", *, allow_link_local: bool = False
) -> DiscoveryResult:
    """Probe once in a child process, so that no thread is left in this one, which will fork.

    A DNS look-up would leave a thread that nothing can end.
    """
    empty_result = DiscoveryResult(addresses=addresses)
    if not addresses:
        return empty_result
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        discovery = Discovery(empty_result, instance_id, allow_link_local=allow_link_local)
        _probe_as_child(discovery, writer)
    os.close(writer)
    try:
        raw_result = _read_all(reader, now() + REFRESH_MAX)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the PID is still the child's
        os.waitpid(child, 0)
    return decoded(raw_result.decode()) if raw_result.endswith(b"}") else empty_result


def _probe_as_child(discovery: Discovery, writer: int) -> NoReturn:
    try:
        with open(writer, "wb") as pipe:
            pipe.write(msgspec.json.encode(discovery.refresh_now()))
    except Exception:
        logger.exception("discovery of model servers failed")
    finally:
        os._exit(0)


def _read_all(reader: int, until: float) -> bytes:
    """Read a pipe until its end or until the time `until`."""
    parts = []
    while select.select([reader], [], [], max(0.0, until - now()))[0]:
        part = os.read(reader, 65_536)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


# --- one refresh ----------------------------------------------------------------------------------


class _ProbeResult(NamedTuple):
    """The answer of an address. With the defaults alone it is no model server."""

    models: list[Model] | None = None
    loaded: frozenset[str] = frozenset()  # names of models that are in memory
    needs_key: bool = False  # a key is needed
    is_away: bool = False  # nothing listens, or the server is starting


def _probe_all(
    urls: Sequence[str], instance_id: str, *, allow_link_local: bool
) -> dict[str, _ProbeResult]:
    """Probe all addresses; return the results that arrived within PROBE_SECONDS."""
    until = now() + PROBE_SECONDS
    # Without https no certificates are loaded: that takes 20 ms, and the rest of a refresh 3 ms.
    is_plain = all(url.startswith("http://") for url in urls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else None
    transport = Transport(
        PROBE_SECONDS, context, instance_id, direct=True, allow_link_local=allow_link_local
    )
    results: dict[str, _ProbeResult] = {}  # each thread sets its address's result

    def probe(url: str, connection: UpstreamConnection) -> None:
        try:
            with use_connection(connection):
                results[url] = result = _probe(transport, url)
                if result.models:
                    results[url] = _completed(transport, url, result)
        except (Interrupted, httpx2.HTTPError):
            pass  # the part of the result that has arrived counts
        except Exception:
            logger.exception("probe of %s failed", url)

    connections = {url: UpstreamConnection() for url in urls}
    threads = []
    for url, connection in connections.items():
        thread = threading.Thread(
            target=probe, args=(url, connection), name="halt-discovery-probe", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # the system has no more threads
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, until - now()))
    for connection in connections.values():
        connection.interrupt()
    for thread in threads:
        thread.join(max(0.0, until + JOIN_SECONDS - now()))
    transport.close()
    return dict(results)


def _probe(transport: Transport, url: str) -> _ProbeResult:
    """Request the list of models from an address. Raises httpx2's errors, Interrupted."""
    try:
        status, value = _get(transport, f"{url}/models")
    except AddressRefused as refusal:
        logger.warning("%s is not probed: %s", url, refusal)
        return _ProbeResult()
    except httpx2.ConnectError:
        return _ProbeResult(is_away=True)
    if status == 503:  # llama.cpp while it loads its model
        return _ProbeResult(is_away=True)
    if status == 401 and isinstance(value, dict):
        is_halt = TOKEN_NEEDED_BEGINNING in str(value)
        return _ProbeResult(needs_key=not is_halt)
    if status != 200 or not isinstance(value, dict):
        return _ProbeResult()
    items = value.get("data", value)  # null from Ollama without a model
    if items is not None and not isinstance(items, list):
        return _ProbeResult()
    models = parse_models({"data": items}) or []
    if (items and not models) or any(model.owned_by == "halt" for model in models):
        return _ProbeResult()
    return _ProbeResult(models, _marked_loaded(url, items or [], models))


def _marked_loaded(url: str, items: list[Any], models: list[Model]) -> frozenset[str]:
    """Return the names of the models that are in memory according to the list itself."""
    by_status = {  # llama.cpp's router
        item["id"]: item["status"].get("value") == "loaded"
        for item in as_objects(items)
        if isinstance(item.get("id"), str) and isinstance(item.get("status"), dict)
    }
    if by_status:
        return frozenset(name for name, is_loaded in by_status.items() if is_loaded)
    product = product_of(url, [model.owned_by for model in models])
    if product is None or product.name not in LISTS_LOADED:
        return frozenset()
    return frozenset(model.name for model in models)


def _completed(transport: Transport, url: str, result: _ProbeResult) -> _ProbeResult:
    """Add what a known product's own API says: which models are in memory, and their abilities."""
    models = result.models or []
    product = product_of(url, [model.owned_by for model in models])
    name = product.name if product else ""
    if name == "ollama":
        _, value = _get(transport, f"{origin(url)}/api/ps")
        own_models = parse_models(value) or []
        loaded = frozenset(model.name for model in own_models)
    elif name == "lmstudio":
        _, value = _get(transport, f"{origin(url)}/api/v0/models")
        own_models = parse_models(value) or []
        items = as_objects(as_object(value).get("data"))
        loaded = frozenset(str(item.get("id")) for item in items if item.get("state") == "loaded")
    else:
        return result
    abilities = {model.name: model.abilities for model in own_models}
    completed_models = [
        model._replace(abilities=model.abilities.replaced_by(abilities.get(model.name, UNKNOWN)))
        for model in models
    ]
    return result._replace(models=completed_models, loaded=result.loaded | loaded)


def _get(transport: Transport, url: str) -> tuple[int, Any]:
    """Return status and JSON value, None if invalid. Raises httpx2's errors, Interrupted."""
    response = transport.handle_request(httpx2.Request("GET", url, headers=HEADERS))
    body = response.extensions["halt.body"]
    assert isinstance(body, Body)  # noqa: S101 - Halt's transport set it
    try:
        data = body.read_all(BODY_MAX)
    finally:
        body.close()
    try:
        return response.status_code, None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return response.status_code, None

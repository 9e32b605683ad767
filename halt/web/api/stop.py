"""The routes of Stop, the list of running streams and health, for programs and for the page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from halt import VERSION
from halt.clock import now
from halt.core.decoding import JSON_OBJECT, check_names, checked_id, is_number
from halt.core.receipts import Receipt
from halt.core.request import Upstream
from halt.errors import RequestError
from halt.people.person import ANYONE
from halt.providers.router import as_providers
from halt.web.identity import owner
from halt.web.requests import STOPS_MAX, wants_fragment
from halt.web.responses import json_response
from halt.web.schemas import Health, RelayFigures, Stopped, Streams
from halt.web.security import FORM
from halt.web.services import services

FIELDS = frozenset({"stream_id", "seen"})  # of a Stop in JSON
PROBE_WAIT = 1.0  # seconds that one health request waits for the upstream's response
#: Errors that are responses of the model's server, so it is reachable.
REFUSALS = frozenset(
    {
        "unauthorized",
        "forbidden",
        "region_not_supported",
        "quota_exceeded",
        "bad_request",
        "rate_limited",
    }
)


def blueprint(fragment: Callable[[Receipt], str], upstream: Upstream) -> Blueprint:
    """The routes. `fragment` renders a Stop's result for the page; health checks `upstream`."""
    routes = Blueprint("api", __name__)
    probe = Probe(upstream)

    def stop_streams(*stops: tuple[object, object]) -> list[Receipt]:
        checked = [(checked_id(stream_id, "stream_id"), _number(seen)) for stream_id, seen in stops]
        return services().generations.stop_many(checked, owner())

    def respond(stream_id: object, seen: object) -> Response:
        (receipt,) = stop_streams((stream_id, seen))
        if wants_fragment():
            return Response(fragment(receipt), 200, mimetype="text/html")
        return json_response(receipt, 202 if receipt.status == "pending" else 200)

    @routes.post("/stop/<stream_id>")
    def stop_one(stream_id: str) -> Response:
        fields = _fields() if request.get_data() else request.args
        return respond(stream_id, fields.get("seen"))

    @routes.post("/stop")
    def stop() -> Response:
        if wants_fragment():  # the page may stop several answers at once
            ids = request.form.getlist("stream_id")[:STOPS_MAX] or [""]
            receipts = stop_streams(*zip_longest(ids, request.form.getlist("seen")[: len(ids)]))
            return Response("".join(map(fragment, receipts)), 200, mimetype="text/html")
        fields = _fields()
        return respond(fields.get("stream_id"), fields.get("seen"))

    @routes.get("/streams")
    def streams() -> Response:
        running = services().generations.running(owner()) if _may_list() else []
        return json_response(Streams(running))

    @routes.post("/stop-all")
    def stop_all() -> Response:
        receipts = services().generations.stop_all(owner()) if _may_list() else []
        return json_response(Stopped(receipts))

    @routes.get("/healthz")
    def healthz() -> Response:
        service = services().generations
        is_draining = service.draining
        health = Health(
            status="draining" if is_draining else "ok",
            version=VERSION,
            **msgspec.structs.asdict(service.health()),
            relay=RelayFigures(**service.relay.figures()),
            upstream=probe.upstream_state(),
        )
        return json_response(health, 503 if is_draining else 200)

    return routes


def _may_list() -> bool:
    """Whether to list streams: not those of unknown clients, which share them."""
    return owner() != ANYONE.id


def _fields() -> dict[str, Any]:
    """The fields of a Stop, of its address and of its JSON or form, which win. Raises RequestError.

    `curl -d` sends JSON with the content type of a form. Only JSON is refused for an unknown field:
    a form of a page, or text of `navigator.sendBeacon`, never is.
    """
    body = request.get_data()
    if not (request.is_json or (request.mimetype == FORM and body.lstrip().startswith(b"{"))):
        return {**request.args, **request.form}
    fields = JSON_OBJECT.decode(body)
    check_names(fields, FIELDS)
    return {**request.args, **fields}


def _number(raw: object) -> int | None:
    if raw is None or raw == "":
        return None
    text = str(raw)
    if not is_number(text):
        raise RequestError("seen must be the number of an event, 0 or more.", field="seen")
    return int(text)


class Probe:
    """Checks whether the model's server responds. With several providers, one is enough."""

    def __init__(self, upstream: Upstream) -> None:
        self._providers = as_providers(upstream)
        self._lock = threading.Lock()  # protects the attribute below
        self._waited_for = float("-inf")  # start time of the check that a request waits for

    def upstream_state(self) -> str:
        """The value of `Health.upstream`.

        Of the requests during one check, one waits for its result, up to PROBE_WAIT; the others
        get the known result at once. So a silent upstream blocks one thread, not all.
        """
        started_at = self._providers.start_checks()
        with self._lock:
            is_first, self._waited_for = self._waited_for != started_at, started_at
        results = self._providers.check_results(now() + PROBE_WAIT if is_first else 0.0)
        if not results or any(responds and fault is None for responds, fault in results):
            return "reachable"
        faults = [fault for _, fault in results if fault is not None]
        if len(faults) < len(results):
            return "unknown"
        code = faults[0].code
        return f"reachable: {code}" if code in REFUSALS else f"unreachable: {code}"

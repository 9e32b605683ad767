"""Stop, what runs, and health: the short requests, for programs and for the page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from halt import VERSION
from halt.clock import now
from halt.core.decoding import JSON_OBJECT, checked_id, is_number
from halt.core.receipts import Receipt
from halt.core.request import Upstream
from halt.errors import RequestError
from halt.providers.router import as_providers
from halt.web.access import has_token
from halt.web.requests import wants_fragment
from halt.web.responses import json_response
from halt.web.schemas import Health, RelayFigures, Stopped, Streams
from halt.web.services import services
from halt.web.sessions import owner

STOPS_MAX = 16  # streams that one press of the page's Stop can name
PROBE_WAIT = 1.0  # seconds that one health request waits for the upstream's answer
#: A error_response is an answer: the server is there.
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
    """The routes; `fragment` draws what the page shows after a Stop, health looks at `upstream`."""
    routes = Blueprint("api", __name__)
    probe = Probe(upstream)

    def press(*stops: tuple[object, object]) -> list[Receipt]:
        checked = [(checked_id(each, "stream_id"), _number(seen)) for each, seen in stops]
        return services().generations.stop_each(checked, owner())

    def answer(stream_id: object, seen: object) -> Response:
        (receipt,) = press((stream_id, seen))
        if wants_fragment():
            return Response(fragment(receipt), 200, mimetype="text/html")
        return json_response(receipt, 202 if receipt.status == "pending" else 200)

    @routes.post("/stop/<stream_id>")
    def stop_one(stream_id: str) -> Response:
        fields = _fields() if request.get_data() else request.args
        return answer(stream_id, fields.get("seen"))

    @routes.post("/stop")
    def stop() -> Response:
        if wants_fragment():  # one press of the page's may stop several answers side by side
            ids = request.form.getlist("stream_id")[:STOPS_MAX] or [""]
            receipts = press(*zip_longest(ids, request.form.getlist("seen")[: len(ids)]))
            return Response("".join(map(fragment, receipts)), 200, mimetype="text/html")
        fields = _fields()
        return answer(fields.get("stream_id"), fields.get("seen"))

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
        leaving = service.draining
        health = Health(
            status="draining" if leaving else "ok",
            version=VERSION,
            **msgspec.structs.asdict(service.health()),
            relay=RelayFigures(**service.relay.figures()),
            upstream=probe.look(),
        )
        return json_response(health, 503 if leaving else 200)

    return routes


def _may_list() -> bool:
    """A session has streams of its own. Those of nobody are secrets, told to the token's holder."""
    return owner() is not None or has_token()


def _fields() -> dict[str, Any]:
    if request.is_json:
        return JSON_OBJECT.decode(request.get_data())
    return {**request.args, **request.form}


def _number(raw: object) -> int | None:
    if raw is None or raw == "":
        return None
    text = str(raw)
    if not is_number(text):
        raise RequestError("seen must be the number of an event, 0 or more.", field="seen")
    return int(text)


class Probe:
    """Whether the model's server answers. One provider that does is enough."""

    def __init__(self, upstream: Upstream) -> None:
        self._providers = as_providers(upstream)
        self._lock = threading.Lock()  # protects the time below
        self._waited_for = float("-inf")  # when the query was begun that a request waited for

    def look(self) -> str:
        """As `Health.upstream` says.

        Of the requests that come while the upstream is asked, one waits, up to PROBE_WAIT; the
        others are told at once what is known. So a silent upstream holds one thread, not all.
        """
        asked_at = self._providers.start_checks()
        with self._lock:
            is_first, self._waited_for = self._waited_for != asked_at, asked_at
        known = self._providers.check_results(now() + PROBE_WAIT if is_first else 0.0)
        if not known or any(answers and fault is None for answers, fault in known):
            return "reachable"
        faults = [fault for _, fault in known if fault is not None]
        if len(faults) < len(known):
            return "unknown"
        code = faults[0].code
        return f"reachable: {code}" if code in REFUSALS else f"unreachable: {code}"

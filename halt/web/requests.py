"""What a request says of its client and of the response that it wants."""

from __future__ import annotations

import ipaddress
import socket

from flask import request

from halt.core.decoding import is_number
from halt.errors import RequestError

NETWORK = 64  # bits that tell one client's IPv6 network from another's; the rest it picks itself


def client_address() -> str:
    """The client's address (see `halt.web.proxies`) as far as limits tell clients apart."""
    found = request.remote_addr or ""
    try:
        known = ipaddress.ip_address(found)
    except ValueError:
        return found
    if isinstance(known, ipaddress.IPv4Address):
        return found
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), NETWORK), strict=False))


def client_socket() -> socket.socket | None:
    """The connection of this request, where the server hands it over (gunicorn does)."""
    found = request.environ.get("gunicorn.socket")
    return found if isinstance(found, socket.socket) else None


def is_upgrade() -> bool:
    """The request is the beginning of a WebSocket, which may do whatever a POST may."""
    return "websocket" in request.headers.get("Upgrade", "").lower()


def wants_fragment() -> bool:
    """The page asks, not a program."""
    return request.headers.get("HX-Request") == "true"


def wants_page() -> bool:
    """A person goes to an address; programs do not ask for text/html."""
    return request.method == "GET" and _wants_html()


def is_plain_form_post() -> bool:
    """The browser itself sends a form of the page; programs do not ask for text/html."""
    return request.method == "POST" and _wants_html()


def _wants_html() -> bool:
    return not wants_fragment() and "text/html" in request.headers.get("Accept", "")


def is_openai() -> bool:
    """The request is to a path that OpenAI's clients ask, there or not."""
    return f"{request.path}/".startswith("/v1/")


def after_parameter() -> int:
    """The event after which a reader wants to go on. Raises RequestError."""
    places = request.headers.get("Last-Event-ID"), request.args.get("after")
    given = [raw for raw in places if raw]
    if not all(map(is_number, given)):
        raise RequestError("after must be the number of an event, 0 or more.", field="after")
    return int(given[0]) if given else 0


def message_id(field: str) -> int:
    """A message's ID in the form. Raises RequestError."""
    raw = request.values.get(field, "")
    if not is_number(raw):
        raise RequestError(f"{field} must be the ID of a message.", field=field)
    return int(raw)

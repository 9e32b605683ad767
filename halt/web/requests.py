"""Reads the current request: its client, its parameters and the kind of response it expects."""

from __future__ import annotations

import ipaddress
import re
import socket

from flask import request

from halt.config.addresses import ip_address
from halt.core.decoding import checked_id, is_number
from halt.errors import RequestError

NETWORK = 64  # bits of an IPv6 client's network; the client chooses the others itself
_WITH_PORT = re.compile(r"([0-9.]{7,15}):[0-9]{1,5}|\[([0-9A-Fa-f:.]{2,45})\]:[0-9]{1,5}")
STOPS_MAX = 16  # streams that one Stop of the page can name
CONVERSATIONS_MAX = 500  # conversations that one request changes or exports at most


def client_address() -> str:
    """The client's address (see `halt.web.proxies`) as the limits use it: for IPv6 its network.

    Some proxies add the client's port, which must not make each connection a client of its own.
    """
    remote = request.remote_addr or ""
    if (with_port := _WITH_PORT.fullmatch(remote)) is not None:
        remote = with_port[1] or with_port[2]
    address = ip_address(remote)
    if address is None:
        return remote
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), NETWORK), strict=False))


def client_socket() -> socket.socket | None:
    """The socket of this request, None where the server does not pass it (gunicorn does)."""
    client = request.environ.get("gunicorn.socket")
    return client if isinstance(client, socket.socket) else None


def is_upgrade() -> bool:
    """Whether the request opens a WebSocket, which can do everything that a POST can."""
    return "websocket" in request.headers.get("Upgrade", "").lower()


def wants_fragment() -> bool:
    """Whether the page's script (htmx) makes the request, which expects an HTML fragment."""
    return request.headers.get("HX-Request") == "true"


def wants_page() -> bool:
    """Whether a browser loads a page: a GET that accepts text/html, as programs do not."""
    return request.method == "GET" and _wants_html()


def is_plain_form_post() -> bool:
    """Whether a browser without scripts sends a form: a POST that accepts text/html."""
    return request.method == "POST" and _wants_html()


def _wants_html() -> bool:
    return not wants_fragment() and "text/html" in request.headers.get("Accept", "")


def is_openai() -> bool:
    """Whether the path is one of OpenAI's API (/v1/), also where no such route exists."""
    return f"{request.path}/".startswith("/v1/")


def after_parameter() -> int:
    """The number of the event after which a reader resumes; 0 by default. Raises RequestError."""
    sources = request.headers.get("Last-Event-ID"), request.args.get("after")
    values = [value for value in sources if value]
    if not all(map(is_number, values)):
        raise RequestError("after must be the number of an event, 0 or more.", field="after")
    return int(values[0]) if values else 0


def conversation_ids() -> list[str]:
    """The conversation IDs of a form, each once. Raises RequestError (`id`)."""
    ids = list(dict.fromkeys(request.form.getlist("id")))
    if not 1 <= len(ids) <= CONVERSATIONS_MAX:
        raise RequestError(f"Select 1 to {CONVERSATIONS_MAX} conversations.", field="id")
    return [checked_id(conversation_id, "id") for conversation_id in ids]


def message_id(field: str) -> int:
    """The message ID in a form or query field. Raises RequestError."""
    raw = request.values.get(field, "")
    if not is_number(raw):
        raise RequestError(f"{field} must be the ID of a message.", field=field)
    return int(raw)

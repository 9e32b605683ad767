"""Redirects of a model's server: followed with the key and the request where that is safe.

Clients turn a POST that is answered with 301 or 302 into a GET without a body, and carry the key to
any address of the same scheme and host. Here the request is kept as it is, on the same server or
from http:// to https:// on it, and goes nowhere else.
"""

from __future__ import annotations

import httpx2

from halt.errors import UpstreamError
from halt.http1 import Body

REDIRECTS_MAX = 5
#: Statuses after which the same request is sent to the new address; 303 wants a GET.
SAME = frozenset((301, 302, 307, 308))
PORTS = {"http": 80, "https": 443}


class Redirects(httpx2.BaseTransport):
    """A transport that follows redirects."""

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, also to where its server leads. Raises UpstreamError, and as inside."""
        for _ in range(REDIRECTS_MAX):
            response = self._transport.handle_request(request)
            if not response.has_redirect_location:
                return response
            request = _moved(request, response)
        raise _astray(request, "it leads from address to address without an end.")

    def close(self) -> None:
        self._transport.close()


def public_address(url: httpx2.URL | str) -> str:
    """An address as it may be shown: without a user's name, a password and what follows a ?."""
    url = httpx2.URL(url) if isinstance(url, str) else url
    return str(url.copy_with(username="", password="", query=None, fragment=None))


def _moved(request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
    """The request to where the response leads. Raises UpstreamError where it must not go there."""
    location = response.headers["location"]
    body = response.extensions.get("halt.body")
    if isinstance(body, Body):
        body.finish()
    response.close()
    try:
        url = request.url.join(location)
    except (httpx2.InvalidURL, ValueError):
        raise _astray(request, "it leads to an address that is none.") from None
    if url.scheme not in PORTS or not url.host:
        raise _astray(request, "it leads to an address that is none.")
    is_same = response.status_code in SAME or request.method in {"GET", "HEAD"}
    if not is_same or not _is_safe(request.url, url):
        raise _astray(
            request, f"it leads to {public_address(url)}: if that is right, set that address."
        )
    headers = httpx2.Headers(request.headers)
    headers["Host"] = url.netloc.decode("ascii")
    return httpx2.Request(
        request.method, url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _is_safe(old: httpx2.URL, new: httpx2.URL) -> bool:
    """Whether the new address is of the same server, or the same one with TLS."""
    if old.host.lower() != new.host.lower():
        return False
    if (old.scheme, new.scheme) == ("http", "https"):
        return True
    return old.scheme == new.scheme and _port(old) == _port(new)


def _port(url: httpx2.URL) -> int:
    return url.port or PORTS[url.scheme]


def _astray(request: httpx2.Request, where: str) -> UpstreamError:
    return UpstreamError(
        "endpoint_not_found",
        sentence="The address of the model's server leads to another one, where Halt does not send "
        "the request and the key.",
        hint=f"Asked was {request.method} {public_address(request.url)}: {where}",
    )

"""Requests of providers' clients: redirects are followed, refusals read whole.

Clients turn a POST that is answered with 301 or 302 into a GET without a body, and carry the key to
any address of the same host. Here the request is kept as it is, on the same server or from http://
to https:// on it, and goes nowhere else.

They also lose a refusal whose body breaks off or is not what its labels say. Here what has come of
it is kept.
"""

from __future__ import annotations

import contextlib
from typing import Any

import httpx2
import msgspec

from halt.clock import now
from halt.core.connection import NoData
from halt.errors import UpstreamError
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

REDIRECTS_MAX = 5
#: Statuses after which the same request is sent to the new address; 303 wants a GET.
REPEATED_STATUSES = frozenset((301, 302, 307, 308))
REFUSAL_SECONDS = 10.0  # without a byte, in which a refusal's body is waited for
PORTS = {"http": 80, "https": 443}
NOWHERE = "http://127.0.0.1:9/v1"  # for a client that wants an address; never asked


class ClientTransport(httpx2.BaseTransport):
    """A transport that follows redirects and brings refusals with their bodies."""

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, also to where its server leads. Raises UpstreamError, and as inside."""
        for _ in range(REDIRECTS_MAX):
            response = self._transport.handle_request(request)
            if response.is_success:
                return response
            if not response.has_redirect_location:
                return _with_whole_body(response, request)
            request = _redirected_request(request, response)
        raise _redirect_error(request, "it leads from address to address without an end.")

    def close(self) -> None:
        self._transport.close()


def http_client(transport: Transport) -> httpx2.Client:
    """What a provider's client sends its requests with."""
    return httpx2.Client(transport=ClientTransport(transport))


def warm_up(
    client: type[Any], path: str, stream: type[Any], refusal: type[Exception], **listing: Any
) -> None:
    """Use a provider's client once, for requests that go nowhere, while its module is imported.

    A client imports modules and builds the types of its requests and answers when it is first used,
    and two threads must never be the first to do so. The arguments are as they are used later.
    """

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/models"):
            models = [{"id": "none", "type": "model"}]
            return httpx2.Response(200, json={"object": "list", "data": models})
        return httpx2.Response(400, json={"error": {"message": "a warm-up"}})

    nowhere = httpx2.Client(transport=httpx2.MockTransport(answer))
    with client(api_key="none", base_url=NOWHERE, max_retries=0, http_client=nowhere) as made:
        made.models.with_raw_response.list(**listing)
        with contextlib.suppress(refusal):
            post(made, path, {"model": "none", "messages": [], "stream": True}, stream)


def post(client: Any, path: str, body: dict[str, Any], stream: type[Any]) -> httpx2.Response:
    """Send a request for a stream by a provider's client. Raises what the client and transport do.

    `stream` is the client's own type of streams. The body is JSON before the client gets it: a
    method as `chat.completions.create` compares each message with the types of all messages, which
    takes 145 us of CPU a message (290 ms for 2,000 messages, 1 MB; 0.8 ms this way), and changes
    nothing in them.
    """
    response: httpx2.Response = client.post(
        path,
        cast_to=httpx2.Response,
        content=msgspec.json.encode(body),
        stream=True,
        stream_cls=stream,
    )
    return response


def public_address(url: httpx2.URL | str) -> str:
    """An address as it may be shown: without a user's name, a password and what follows a ?."""
    url = httpx2.URL(url) if isinstance(url, str) else url
    return str(url.copy_with(username="", password="", query=None, fragment=None))


def _redirected_request(request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
    """The request to where the response leads. Raises UpstreamError where it must not go there."""
    location = response.headers["location"]
    body = response.extensions.get("halt.body")
    if isinstance(body, Body):
        body.close()
    response.close()
    try:
        url = request.url.join(location)
    except (httpx2.InvalidURL, ValueError):
        raise _redirect_error(request, "it leads to an address that is none.") from None
    if url.scheme not in PORTS or not url.host:
        raise _redirect_error(request, "it leads to an address that is none.")
    is_same = response.status_code in REPEATED_STATUSES or request.method in {"GET", "HEAD"}
    if not is_same or not _is_same_server(request.url, url):
        raise _redirect_error(
            request, f"it leads to {public_address(url)}: if that is right, set that address."
        )
    headers = httpx2.Headers(request.headers)
    headers["Host"] = url.netloc.decode("ascii")
    return httpx2.Request(
        request.method, url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _with_whole_body(response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
    """A refusal with as much of its body as comes."""
    body = response.extensions.get("halt.body")
    if not isinstance(body, Body):
        return response
    pieces: list[bytes] = []
    size, heard_at = 0, now()
    with contextlib.suppress(httpx2.HTTPError):
        while size < REFUSAL_MAX and now() - heard_at < REFUSAL_SECONDS:
            try:
                piece = body.read()
            except NoData:
                continue
            if not piece:
                break
            pieces.append(piece)
            size, heard_at = size + len(piece), now()
    body.close()
    headers = response.headers.copy()
    for name in ("content-length", "transfer-encoding"):
        headers.pop(name, None)
    status, content = response.status_code, b"".join(pieces)
    try:
        return httpx2.Response(status, headers=headers, content=content, request=request)
    except httpx2.DecodingError:  # it is not encoded as its label says, or it broke off
        del headers["content-encoding"]
        return httpx2.Response(status, headers=headers, content=content, request=request)


def _is_same_server(old: httpx2.URL, new: httpx2.URL) -> bool:
    """Whether the new address is of the same server, or the same one with TLS."""
    if old.host.lower() != new.host.lower():
        return False
    if (old.scheme, new.scheme) == ("http", "https"):
        return True
    ports = [url.port or PORTS[url.scheme] for url in (old, new)]
    return old.scheme == new.scheme and ports[0] == ports[1]


def _redirect_error(request: httpx2.Request, where: str) -> UpstreamError:
    return UpstreamError(
        "endpoint_not_found",
        sentence="The address of the model's server leads to another one, where Halt does not send "
        "the request and the key.",
        hint=f"The request was {request.method} {public_address(request.url)}: {where}",
    )

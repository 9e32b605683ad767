"""The transport of the providers' clients: sets headers, follows redirects, reads whole refusals.

Clients turn a POST that is answered with 301 or 302 into a GET without a body, and send the key to
any address of the same host. This transport repeats the request unchanged, only on the same origin,
or from port 80 to port 443 with TLS on the same host. Any other server gets nothing.

Clients also lose a refusal whose body breaks off or does not match its headers. This transport
keeps the part of it that arrived.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import httpx2

from halt.clock import now
from halt.core.connection import NoData
from halt.core.json_pieces import json_pieces
from halt.errors import UpstreamError
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

REDIRECTS_MAX = 5
#: Statuses after which the same request is sent to the new address; 303 requires a GET.
REPEATED_STATUSES = frozenset((301, 302, 307, 308))
REFUSAL_SECONDS = 10.0  # without a byte, after which the body of a refusal is cut off
PORTS = {"http": 80, "https": 443}
NOWHERE = "http://127.0.0.1:9/v1"  # for a client that requires an address; never connected to


class ClientTransport(httpx2.BaseTransport):
    """A transport that sets headers, follows redirects and returns refusals with their bodies."""

    def __init__(
        self, transport: httpx2.BaseTransport, headers: Mapping[str, str] | None = None
    ) -> None:
        """`headers` replace those of the client with the same names, the key's among them."""
        self._transport = transport
        self._headers = httpx2.Headers(
            [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and follow redirects.

        Raises UpstreamError for a redirect that must not be followed, and the inner transport's
        errors.
        """
        if self._headers:
            others = [item for item in request.headers.raw if item[0].decode() not in self._headers]
            request.headers = httpx2.Headers([*others, *self._headers.raw])
        for _ in range(REDIRECTS_MAX):
            response = self._transport.handle_request(request)
            if response.is_success:
                return response
            if not response.has_redirect_location:
                return _with_whole_body(response, request)
            request = _redirected_request(request, response)
        raise _redirect_error(request, f"there were {REDIRECTS_MAX} redirects in a row.")

    def close(self) -> None:
        self._transport.close()


def http_client(transport: Transport, headers: Mapping[str, str]) -> httpx2.Client:
    """Create the HTTP client for a provider's client. `headers` are sent with each request.

    The clients' own `default_headers` would not do: Azure's sets the key after them.
    """
    return httpx2.Client(transport=ClientTransport(transport, headers))


def warm_up(
    client: type[Any], path: str, stream: type[Any], refusal: type[Exception], **listing: Any
) -> None:
    """Use a provider's client once with a mock transport, while its module is imported.

    On its first use a client imports modules and builds the types of its requests and answers. That
    is not safe in two threads at once. The arguments are the same as in later requests.
    """

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/models"):
            models = [{"id": "none", "type": "model"}]
            return httpx2.Response(200, json={"object": "list", "data": models})
        return httpx2.Response(400, json={"error": {"message": "a warm-up"}})

    mock = httpx2.Client(transport=httpx2.MockTransport(answer))
    with client(api_key="none", base_url=NOWHERE, max_retries=0, http_client=mock) as warm_client:
        warm_client.models.with_raw_response.list(**listing)
        with contextlib.suppress(refusal):
            post(warm_client, path, {"model": "none", "messages": [], "stream": True}, stream)


def post(client: Any, path: str, body: dict[str, Any], stream: type[Any]) -> httpx2.Response:
    """Send a request for a stream with a provider's client.

    Raises the errors of the client and of the transport.

    `stream` is the client's type of streams. The body is encoded to JSON here: a method such as
    `chat.completions.create` compares each message with the types of all messages, which takes
    145 us of CPU per message (290 ms for 2,000 messages, 1 MB; 0.8 ms here) and changes nothing in
    them.

    A body with images is sent in pieces, since every copy of it would hold up other threads.
    """
    pieces = json_pieces(body)
    is_whole = len(pieces) == 1
    length = {} if is_whole else {"Content-Length": str(sum(map(len, pieces)))}
    response: httpx2.Response = client.post(
        path,
        cast_to=httpx2.Response,
        content=pieces[0] if is_whole else pieces,
        options={"headers": length},
        stream=True,
        stream_cls=stream,
    )
    return response


def public_address(url: httpx2.URL | str) -> str:
    """Return an address that may be shown: without user name, password, query and fragment."""
    url = httpx2.URL(url) if isinstance(url, str) else url
    return str(url.copy_with(username="", password="", query=None, fragment=None))


def _redirected_request(request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
    """Return the request for the redirect's target. Raises UpstreamError if that is not allowed."""
    location = response.headers["location"]
    body = response.extensions.get("halt.body")
    if isinstance(body, Body):
        body.close()
    response.close()
    try:
        url = request.url.join(location)
    except (httpx2.InvalidURL, ValueError):
        raise _redirect_error(request, "its redirect has an invalid address.") from None
    if url.scheme not in PORTS or not url.host:
        raise _redirect_error(request, "its redirect has an invalid address.")
    is_same = response.status_code in REPEATED_STATUSES or request.method in {"GET", "HEAD"}
    if not is_same or not _may_follow(request.url, url):
        raise _redirect_error(
            request, f"it redirects to {public_address(url)}: if that is right, set that address."
        )
    headers = httpx2.Headers(request.headers)
    headers["Host"] = url.netloc.decode("ascii")
    return httpx2.Request(
        request.method, url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _with_whole_body(response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
    """Return a refusal with the part of its body that arrives."""
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
    except httpx2.DecodingError:  # the body does not match its encoding header, or broke off
        del headers["content-encoding"]
        return httpx2.Response(status, headers=headers, content=content, request=request)


def _may_follow(old_url: httpx2.URL, new_url: httpx2.URL) -> bool:
    """Whether the new address has the same origin, or is the same host's usual one with TLS.

    Another port is another server: whoever runs it may not be the one who got the key.
    """
    old, new = (
        (url.scheme, url.host.lower(), url.port or PORTS[url.scheme]) for url in (old_url, new_url)
    )
    return new == old or (old[::2] == ("http", 80) and new == ("https", old[1], 443))


def _redirect_error(request: httpx2.Request, reason: str) -> UpstreamError:
    return UpstreamError(
        "endpoint_not_found",
        sentence="The address of the model's server redirects to another one. Halt does not send "
        "the request and the key there.",
        hint=f"The request was {request.method} {public_address(request.url)}: {reason}",
    )

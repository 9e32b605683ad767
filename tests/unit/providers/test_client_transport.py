"""The transport of a provider's client: redirects, addresses, broken errors, renamed options."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from halt.config.providers import ProviderSettings
from halt.core.connection import NoData, UpstreamConnection
from halt.core.request import ChatRequest, Message, Reply
from halt.errors import UpstreamError
from halt.providers.anthropic.upstream import AnthropicUpstream
from halt.providers.base import Provider
from halt.providers.client_transport import ClientTransport
from halt.providers.openai import AzureUpstream, OpenAIUpstream
from halt.transport.pool import Transport
from tests.support.raw_server import Peer, RawServer
from tests.support.waiting import WAIT_TIMEOUT

KEY = "sk-hush-0123456789abcdef"
CONTEXT = httpx2.create_ssl_context()  # loading it takes 20 ms
JSON = b"Content-Type: application/json\r\n"
KINDS: dict[str, type[Provider]] = {
    "openai": OpenAIUpstream,
    "azure": AzureUpstream,
    "anthropic": AnthropicUpstream,
}
CHUNKS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"A"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
EVENTS = (
    b'data: {"type":"message_start","message":{"model":"m","usage":{}}}\n\n'
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"A"}}\n\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}\n\n'
    b'data: {"type":"message_stop"}\n\n'
)

#: Returns a whole response for a method, a path and a decoded body.
Serve = Callable[[str, str, dict[str, Any]], bytes]


def response(status: str, body: bytes = b"", head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        head,
        len(body),
        body,
    )


def refusal_response(message: str, status: str = "400 Bad Request", **fields: Any) -> bytes:
    return response(status, json.dumps({"error": {"message": message, **fields}}).encode(), JSON)


def answer_response(body: bytes = CHUNKS) -> bytes:
    return response("200 OK", body, b"Content-Type: text/event-stream\r\n")


def redirect_response(status: int, location: str) -> bytes:
    return response(f"{status} Moved", b"<html>moved</html>", f"Location: {location}\r\n".encode())


class Server(RawServer):
    """A server that responds by a function, and records its requests."""

    def __init__(self, serve: Serve) -> None:
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.heads: list[bytes] = []

        def handle(peer: Peer) -> None:
            while raw := peer.request():
                head, _, body = raw.partition(b"\r\n\r\n")
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
                self.heads.append(head)
                self.requests.append((method, path, json.loads(body) if body else {}))
                peer.send(serve(*self.requests[-1]))

        super().__init__(handle)
        self.root = self.url.removesuffix("/v1")


@contextmanager
def provider(kind: str, address: str, **options: Any) -> Iterator[Provider]:
    settings = ProviderSettings(name="x", kind=kind, base_url=address, key=KEY, **options)  # type: ignore[arg-type]
    upstream = KINDS[kind](settings, Transport(WAIT_TIMEOUT, CONTEXT))
    try:
        yield upstream
    finally:
        upstream.close()


def ask(upstream: Provider, **options: Any) -> str:
    """The text of an answer. Raises UpstreamError."""
    reply: Reply = upstream.open(
        ChatRequest([Message("user", "hi")], model="m", **options), UpstreamConnection()
    )
    text, ended = "", False
    try:
        while not ended:
            try:
                part = reply.read()
            except NoData:
                continue
            text, ended = text + part.text, part.ended
    finally:
        reply.close()
    return text


def fault_of(upstream: Provider, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        ask(upstream, **options)
    return caught.value


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("location", ["/b/v1/chat/completions", "{root}/b/v1/chat/completions"])
def test_redirect_on_the_same_server_keeps_the_request(status: int, location: str) -> None:
    """A redirected POST stays a POST with its body and its key."""

    def serve(_: str, path: str, __: dict[str, Any]) -> bytes:
        return (
            answer_response()
            if path.startswith("/b/")
            else redirect_response(status, location.format(root=root))
        )

    with Server(serve) as server:
        root = server.root
        with provider("openai", server.url) as upstream:
            assert ask(upstream) == "A"
    (first, second) = server.requests
    assert second == ("POST", "/b/v1/chat/completions", first[2])
    assert KEY.encode() in server.heads[1]


def test_model_list_follows_redirects() -> None:
    """The list of models is read through a redirect, also a 303."""

    def serve(_: str, path: str, __: dict[str, Any]) -> bytes:
        if path == "/v1/models":
            return redirect_response(303, "/b/models")
        return response("200 OK", b'[{"id":"a"}]', JSON)

    with Server(serve) as server, provider("openai", server.url) as upstream:
        assert upstream.models(UpstreamConnection()) == ["a"]


OWN = {"X-Gateway": "gate-0123456789", "Authorization": "Bearer own-0123456789"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_port_is_refused_without_the_key(
    kind: str, status: int, method: str
) -> None:
    """A redirect to another port is not followed: no body, key or header gets there.

    The message names the target without its secrets.
    """
    with (
        Server(lambda *_: answer_response()) as other_server,
        Server(
            lambda *_: redirect_response(
                status, f"http://u:pw@127.0.0.1:{other_server.port}/x/v1?k=1"
            )
        ) as server,
        provider(kind, server.url, headers=OWN) as upstream,
    ):
        if method == "POST":
            fault = fault_of(upstream)
        else:
            with pytest.raises(UpstreamError) as caught:
                upstream.catalog(UpstreamConnection())
            fault = caught.value
    assert (other_server.accepted, len(server.requests)) == (0, 1)
    assert server.requests[0][0] == method
    assert fault.code == "endpoint_not_found"
    assert not fault.retryable
    assert f"it redirects to http://127.0.0.1:{other_server.port}/x/v1:" in fault.message
    for secret in ("pw", KEY, *OWN.values()):
        assert secret not in fault.message


@pytest.mark.parametrize(
    ("source", "target", "is_followed"),
    [
        ("http://a.example", "https://a.example", True),
        ("http://a.example:80", "https://A.example:443", True),
        ("https://a.example", "https://a.example:443", True),
        ("http://a.example:8080", "http://a.example:8080", True),
        ("http://a.example:8080", "https://a.example", False),
        ("http://a.example:8080", "https://a.example:8080", False),
        ("http://a.example", "https://a.example:8443", False),
        ("http://a.example", "https://b.example", False),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example:8443", False),
        ("https://a.example", "https://a.example.", False),
        ("https://a.example", "https://a.example@b.example", False),
    ],
)
def test_redirect_is_followed_on_its_origin_and_to_its_tls(
    source: str, target: str, is_followed: bool
) -> None:
    """Other than the same origin only the usual port of the same host with TLS gets a request."""
    urls: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        urls.append(str(request.url))
        if len(urls) == 1:
            return httpx2.Response(307, headers={"Location": f"{target}/x"})
        return httpx2.Response(200)

    transport = ClientTransport(httpx2.MockTransport(answer), OWN)
    request = httpx2.Request("POST", f"{source}/v1", content=b"hush")
    if is_followed:
        assert transport.handle_request(request).status_code == 200
    else:
        with pytest.raises(UpstreamError):
            transport.handle_request(request)
    assert len(urls) == 1 + is_followed


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Authorization", "authorization", "api-key", "X-Api-Key"])
def test_headers_are_sent_with_each_request_and_replace_the_key(kind: str, name: str) -> None:
    """Headers of a provider go with answers and lists, once each, whatever the case of its name."""
    body = EVENTS if kind == "anthropic" else CHUNKS
    headers = {name: "Bearer own-0123456789", "X-Gateway": "gate-0123456789"}

    def serve(method: str, *_: Any) -> bytes:
        return (
            response("200 OK", b'[{"id":"a"}]', JSON) if method == "GET" else answer_response(body)
        )

    with Server(serve) as server, provider(kind, server.url, headers=headers) as upstream:
        assert ask(upstream) == "A"
        upstream.catalog(UpstreamConnection())
    for head in server.heads:
        lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
        values = [value for key, _, value in lines if key.lower() == name.lower().encode()]
        assert values == [b"Bearer own-0123456789"]
        assert b"X-Gateway: gate-0123456789" in head


def test_quoted_header_is_masked() -> None:
    """A gateway that quotes the header it refuses shows nothing of it."""
    with (
        Server(lambda *_: refusal_response("bad gate-0123456789", "403 Forbidden")) as server,
        provider("openai", server.url, headers={"X-Gateway": "gate-0123456789"}) as upstream,
    ):
        fault = fault_of(upstream)
    assert "gate" not in fault.message + fault.detail
    assert "[key]" in fault.message
    assert fault.__cause__ is None  # a traceback in a log would show it
    assert fault.__suppress_context__


def test_quoted_password_of_the_address_is_masked() -> None:
    """The password in an address is a secret, also in the header that is made of it."""
    password = "pass-0123456789"

    def serve(*_: Any) -> bytes:
        header = next(line for line in server.heads[-1].split(b"\r\n") if b"Basic" in line)
        return refusal_response(f"bad {password}, {header.decode()}", "403 Forbidden")

    with Server(serve) as server:
        address = server.url.replace("//", f"//user:{password}@")
        with provider("openai", address) as upstream:
            message = fault_of(upstream).message
    assert password not in message
    assert base64.b64encode(f"user:{password}".encode()).decode() not in message
    assert message.count("[key]") == 2


# --- more redirects -------------------------------------------------------------------------------


def test_redirect_to_another_host_name_is_refused() -> None:
    """Another host name counts as another server, even on the same machine."""
    with (
        Server(lambda *_: redirect_response(308, f"http://localhost:{server.port}/x")) as server,
        provider("openai", server.url) as upstream,
    ):
        assert f"it redirects to http://localhost:{server.port}/x" in fault_of(upstream).message
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [302, 404])
def test_key_in_an_address_is_masked(status: int) -> None:
    """A key in the path of an address or of a redirect is masked in the message."""
    with (
        Server(lambda *_: redirect_response(status, f"http://127.0.0.1:9/{KEY}/v1")) as server,
        provider("openai", f"{server.root}/{KEY}/v1") as upstream,
    ):
        message = fault_of(upstream).message
    assert "[key]" in message
    assert KEY not in message


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/x", "http://[::bad/", "javascript:alert(1)", "https://"]
)
def test_redirect_to_an_invalid_address_is_endpoint_not_found(location: str) -> None:
    """A redirect with an invalid Location is reported as a wrong address."""
    with (
        Server(lambda *_: redirect_response(302, location)) as server,
        provider("openai", server.url) as upstream,
    ):
        assert fault_of(upstream).code == "endpoint_not_found"
    assert len(server.requests) == 1


def test_redirect_loop_ends_with_an_error() -> None:
    """A loop of redirects ends after a few, with a message."""
    with (
        Server(lambda *_: redirect_response(302, "/v1/chat/completions")) as server,
        provider("openai", server.url) as upstream,
    ):
        assert "5 redirects in a row" in fault_of(upstream).message
    assert 2 < len(server.requests) < 10


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "configured_path", "path"),
    [
        ("openai", "/v1/chat/completions", "/v1/chat/completions"),
        ("openai", "/v1/chat/completions/", "/v1/chat/completions"),
        ("openai", "/api/v1/models", "/api/v1/chat/completions"),
        ("openai", "/v1/responses", "/v1/chat/completions"),
        ("openai", "/openai/", "/openai/chat/completions"),
        ("openai", "", "/chat/completions"),
        ("anthropic", "/v1/messages", "/v1/messages"),
        ("anthropic", "/anthropic/v1/", "/anthropic/v1/messages"),
        ("anthropic", "/anthropic", "/anthropic/v1/messages"),
        (
            "azure",
            "/openai/deployments/m/chat/completions",
            "/openai/deployments/m/chat/completions",
        ),
        ("azure", "/openai/v1", "/openai/deployments/m/chat/completions"),
        ("azure", "/gate/openai/", "/gate/openai/deployments/m/chat/completions"),
    ],
)
def test_address_may_include_the_path_of_a_request(
    kind: str, configured_path: str, path: str
) -> None:
    """An address copied with the path of a request works."""
    body = EVENTS if kind == "anthropic" else CHUNKS
    version = {"api_version": "1"} if kind == "azure" else {}
    with (
        Server(lambda *_: answer_response(body)) as server,
        provider(kind, server.root + configured_path, **version) as upstream,
    ):
        assert ask(upstream) == "A"
    assert server.requests[0][1].partition("?")[0] == path


@pytest.mark.parametrize(
    ("kind", "setting", "path"),
    [
        ("openai", "OPENAI_BASE_URL", "/v1/chat/completions"),
        ("azure", "AZURE_OPENAI_ENDPOINT", "/v1/openai/deployments/m/chat/completions"),
        ("anthropic", "ANTHROPIC_BASE_URL", "/v1/messages"),
    ],
)
def test_page_404_names_the_requested_url_and_the_setting(
    kind: str, setting: str, path: str
) -> None:
    """A web server's 404 has the URL and the setting, and does not blame the model."""
    page = b"<html><head><title>404 Not Found</title></head></html>"
    version = {"api_version": "1"} if kind == "azure" else {}
    with (
        Server(lambda *_: response("404 Not Found", page)) as server,
        provider(kind, server.url, **version) as upstream,
    ):
        message = fault_of(upstream).message
    assert f"The request was POST {server.root}{path}" in message
    assert setting in message
    assert "have this model" not in message


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (
            response("404 Not Found", b'{"detail":"Not Found"}', JSON),
            "endpoint_not_found",
            "HALT_MODEL",
        ),
        (response("405 Method Not Allowed"), "endpoint_not_found", "HALT_MODEL"),
        (response("501 Not Implemented"), "bad_request", "501 Not Implemented"),
        (response("200 OK", b"<html><title>Sign in</title>", JSON), "upstream_web_page", "Sign in"),
        (response("200 OK", b'{"error":"Boom 7"}', JSON), "upstream_error", "Boom 7"),
        (
            response(
                "200 OK", b'{"base_resp":{"status_code":1008,"status_msg":"no balance left"}}'
            ),
            "quota_exceeded",
            "no balance",
        ),
        (refusal_response("Boom 7", "500 Oops"), "upstream_server_error", "Boom 7"),
        (response("200 OK", b"nonsense"), "upstream_invalid", ""),
    ],
)
def test_response_without_a_list_is_reported_with_its_reason(
    reply: bytes, code: str, words: str
) -> None:
    """Without a list the message names HALT_MODEL; any other fault has the server's words."""
    with Server(lambda *_: reply) as server, provider("openai", server.url) as upstream:
        with pytest.raises(UpstreamError) as caught:
            upstream.default_model(UpstreamConnection())
        assert (caught.value.code, words in caught.value.message) == (code, True)


def test_model_list_is_read_whatever_its_content_type_is() -> None:
    """JSON labelled text/html is read; the first chat model is the default."""
    body = b'{"models":[{"name":"nomic-embed-text"},{"name":"a"}]}'
    reply = response("200 OK", body, b"Content-Type: text/html\r\n")
    with Server(lambda *_: reply) as server, provider("openai", server.url) as upstream:
        assert upstream.models(UpstreamConnection()) == ["nomic-embed-text", "a"]
        assert upstream.default_model(UpstreamConnection()) == "a"


# --- refusals whose bodies break ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 999\r\n\r\n" + b'{"error":{"message":"Boom 7',
        b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nBoom 7",
        response("500 Oops", b'{"error":{"message":"Boom 7"}}', b"Content-Encoding: gzip\r\n"),
        response("500 Oops", gzip.compress(b'{"error":"Boom 7"}'), b"Content-Encoding: gzip\r\n"),
        response("500 Oops", b'{"error":"Boom 7"}', b"Content-Encoding: identity\r\n"),
        response("500 Oops", b'\xef\xbb\xbf{"error":"Boom 7"}', b"Content-Type: text/plain\r\n"),
        response("500 Oops", b"Boom 7 \xff", b"Content-Type: text/plain; charset=nope\r\n"),
    ],
)
def test_error_with_a_broken_body_keeps_its_status_and_words(kind: str, reply: bytes) -> None:
    """The status and the readable part of a broken error body are reported."""

    def handle(peer: Peer) -> None:
        if peer.request():
            peer.send(reply)

    version = {"api_version": "1"} if kind == "azure" else {}
    with RawServer(handle) as server, provider(kind, server.url, **version) as upstream:
        fault = fault_of(upstream)
    assert fault.code == "upstream_server_error"
    assert "It said: Boom 7" in fault.message


# --- options under other names --------------------------------------------------------------------

REFUSALS = [
    "Unsupported parameter: '{old}' is not supported with this model. Use '{new}' instead.",
    "'{old}' is not supported with this model, use '{new}'",
    "Unrecognized request argument supplied: {old}",
    "property '{old}' is unsupported, did you mean '{new}'?",
    "Unknown field: parameter '{old}' is not a valid field",
    "{old}: Extra inputs are not permitted",
    "The field {old} is deprecated",
]


@pytest.mark.parametrize("kind", ["openai", "azure"])
@pytest.mark.parametrize("message_format", REFUSALS)
@pytest.mark.parametrize("old_name", ["max_tokens", "max_completion_tokens"])
def test_token_limit_is_renamed_after_a_refusal(
    kind: str, message_format: str, old_name: str
) -> None:
    """After one refusal the other name of the token limit is sent, for each model."""
    new_name = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[
        old_name
    ]

    def serve(_: str, __: str, body: dict[str, Any]) -> bytes:
        return (
            refusal_response(message_format.format(old=old_name, new=new_name))
            if old_name in body
            else answer_response()
        )

    version = {"api_version": "1"} if kind == "azure" else {}
    with Server(serve) as server, provider(kind, server.url, **version) as upstream:
        assert [ask(upstream, **{old_name: 50}) for _ in range(2)] == ["A", "A"]
    bodies = [body for _, _, body in server.requests]
    assert [(old_name in body, body.get(new_name)) for body in bodies] == [
        (True, None),
        (False, 50),
        (False, 50),
    ]
    assert all("stream_options" in body for body in bodies)


def test_several_refused_options_are_learnt_in_one_request() -> None:
    """Each refused option costs one request, and none later."""

    def serve(_: str, __: str, body: dict[str, Any]) -> bytes:
        for name in ("stream_options", "max_tokens"):
            if name in body:
                return refusal_response(
                    f"Unknown parameter: '{name}'.", "422 Unprocessable", param=name
                )
        return answer_response()

    with Server(serve) as server, provider("openai", server.url) as upstream:
        assert [ask(upstream, max_tokens=50) for _ in range(2)] == ["A", "A"]
    assert len(server.requests) == 4
    assert server.requests[-1][2]["max_completion_tokens"] == 50


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 300000. This model supports at most 128000 completion tokens.",
        "'max_tokens' must be at least 1",
        "Invalid value for 'temperature'.",
        "Unknown parameter: 'temperature'.",
    ],
)
def test_refused_value_is_reported_without_a_second_request(words: str) -> None:
    """A refused value of a known option is not sent again under another name."""
    with (
        Server(lambda *_: refusal_response(words)) as server,
        provider("openai", server.url) as upstream,
    ):
        fault = fault_of(upstream, max_tokens=300_000)
    assert len(server.requests) == 1
    assert words in fault.message


def test_renamed_option_is_learnt_again() -> None:
    """A name that was refused once is sent again if the other one is refused."""
    accepted_name = "max_completion_tokens"

    def serve(_: str, __: str, body: dict[str, Any]) -> bytes:
        refused_name = (
            "max_tokens" if accepted_name == "max_completion_tokens" else "max_completion_tokens"
        )
        return (
            refusal_response(f"Unsupported parameter: {refused_name}")
            if refused_name in body
            else answer_response()
        )

    with Server(serve) as server, provider("openai", server.url) as upstream:
        assert ask(upstream, max_tokens=50) == "A"
        accepted_name = "max_tokens"
        assert [
            ask(upstream, **{name: 50}) for name in (accepted_name, "max_completion_tokens")
        ] == [
            "A",
            "A",
        ]
    assert len(server.requests) == 5
    assert all(body.get("max_tokens") == 50 for _, _, body in server.requests[3:4])


def test_option_refused_under_both_names_is_sent_twice_at_most() -> None:
    """A server that refuses both names gets two requests, not a loop of them."""

    def serve(_: str, __: str, body: dict[str, Any]) -> bytes:
        name = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        return refusal_response(f"Unsupported parameter: {name}")

    with Server(serve) as server, provider("openai", server.url) as upstream:
        assert "Unsupported parameter" in fault_of(upstream, max_tokens=50).message
        assert "Unsupported parameter" in fault_of(upstream, max_tokens=50).message
    assert len(server.requests) <= 4

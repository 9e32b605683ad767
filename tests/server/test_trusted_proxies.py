"""Headers of proxies: HALT_TRUSTED_PROXIES decides which are used, and for what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer
from tests.support.http_client import Client
from tests.support.websocket_client import WebSocket

pytestmark = pytest.mark.slow

TOKEN = "open-sesame"
FORM = "application/x-www-form-urlencoded"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "model": "echo"}
#: Headers with which a client pretends to have another address, or to use HTTPS.
FORGED_HEADERS = {
    "X-Forwarded-For": "203.0.113.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "Forwarded": "for=203.0.113.1;proto=https",
}


@pytest.fixture(scope="module")
def servers(shared_fake: FakeOpenAI) -> Iterator[dict[int, HaltServer]]:
    """By the number of trusted proxies: a Halt with 0, one with 1 and a token, one with 2."""
    limit = {"HALT_RATE_ADDRESS": "2/hour", "OPENAI_API_KEY": "fake"}
    with contextlib.ExitStack() as stack:
        servers = {}
        for count, more in ((0, {}), (1, {"HALT_TOKEN": TOKEN}), (2, {})):
            env = {"OPENAI_BASE_URL": shared_fake.base_url, "HALT_TRUSTED_PROXIES": str(count)}
            servers[count] = HaltServer(env | limit | more)
            stack.callback(servers[count].close)
        yield servers


def session_cookie(client: Client) -> str:
    """The Set-Cookie header of the page's response."""
    page = client.get("/")
    assert page.status == 200
    return page.headers["set-cookie"]


def test_forwarded_headers_are_ignored_without_a_proxy(servers: dict[int, HaltServer]) -> None:
    """Without a trusted proxy forwarded headers change nothing: a client without TLS keeps its
    session.
    """
    client = servers[0].client(**FORGED_HEADERS)
    assert "Secure" not in session_cookie(client)
    assert client.get("/", X_Halt_Inspect="1").json == {
        "trusted_proxies": 0,
        "forwarded": 1,
        "secure": False,
        "max_import_bytes": 67_108_864,
    }
    statuses = []
    for n in range(3):
        client = servers[0].client(**FORGED_HEADERS | {"X-Forwarded-For": f"203.0.113.{n}"})
        statuses.append(client.post("/chat", HELLO).status)
    assert statuses == [200, 200, 429]


def test_server_ignores_forwarded_headers(servers: dict[int, HaltServer]) -> None:
    """The server itself ignores forwarded headers: none is a bad request or sets the application's
    path.
    """
    contradiction = servers[0].client(**{"X-Forwarded-Ssl": "on", "X-Forwarded-Proto": "http"})
    assert contradiction.get("/healthz").status == 200
    assert servers[0].client(SCRIPT_NAME="/elsewhere").get("/healthz").status == 200
    assert servers[0].client(SCRIPT_NAME="/heal").get("/healthz").status == 200


@pytest.mark.parametrize(
    ("proto", "secure"),
    [("https", True), ("http", False), ("https, http", False), ("http, https", True), ("", False)],
)
def test_cookie_is_secure_if_the_proxy_says_https(
    servers: dict[int, HaltServer], proto: str, secure: bool
) -> None:
    """The cookie is Secure if the last X-Forwarded-Proto, which the proxy wrote, is https."""
    browser = servers[1].client(**{"X-Forwarded-Proto": proto, "Accept": "text/html"})
    login = browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    assert login.status == 302
    assert ("Secure" in login.headers["set-cookie"]) is secure
    assert ("Secure" in session_cookie(browser)) is secure


def test_two_proxies_use_the_last_but_one_address(servers: dict[int, HaltServer]) -> None:
    """With two proxies the last but one address is limited, on sockets too; earlier ones may be
    forged.
    """
    statuses = []
    for n in range(2):
        client = servers[2].client(
            **{"X-Forwarded-For": f"203.0.113.{n}, 10.0.0.1, 10.0.0.{9 + n}"}
        )
        statuses.append(client.post("/chat", HELLO).status)
    assert statuses == [200, 200]
    with WebSocket(servers[2], X_Forwarded_For="203.0.113.7, 10.0.0.1, 10.0.0.9") as ws:
        ws.send(type="start", **HELLO)
        assert ws.next()["error"]["code"] == "too_many_requests"
    with WebSocket(servers[2], X_Forwarded_For="203.0.113.7, 10.0.0.2, 10.0.0.9") as ws:
        ws.start("echo")
    https_headers = {"X-Forwarded-For": "10.0.0.3, 10.0.0.9", "X-Forwarded-Proto": "https"}
    assert "Secure" in session_cookie(servers[2].client(**https_headers))


def test_request_report_needs_access(
    servers: dict[int, HaltServer],
) -> None:
    """The request report is not for clients without access: they get the route's own answer."""
    headers = {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https", "X-Halt-Inspect": "1"}
    client = servers[1].client(**headers)
    assert "trusted_proxies" not in client.get("/healthz").json
    assert client.get("/ws").status == 401
    authorised = servers[1].client(**headers, Authorization=f"Bearer {TOKEN}")
    for path in ("/healthz", "/ws", "/no/such/path"):
        facts = authorised.get(path).json
        assert (facts["trusted_proxies"], facts["forwarded"], facts["secure"]) == (1, 1, True)
        assert "10.0.0.1" not in str(facts)

"""Pages of other origins: refused by default; listed origins have the rights of a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Blueprint, Flask, session

from halt.app import create_app
from halt.config.environment import load
from halt.config.settings import Config, ConfigError
from halt.testing.fake_openai import FakeOpenAI
from halt.web.cors import API
from tests.support.halt_server import HaltServer, new_id
from tests.support.http_client import HttpResponse
from tests.support.websocket_client import WebSocket

SHOP = "https://shop.example"
DEV = "http://localhost:5173"
FORM = "application/x-www-form-urlencoded"
TOKEN = "open-sesame"
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "model": "count?n=2"}
ALLOWED = "access-control-allow-origin"


def serve(fake: FakeOpenAI, **settings: str) -> HaltServer:
    return HaltServer({"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "fake", **settings})


@pytest.fixture(scope="module")
def listed_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server whose setting lists two origins."""
    server = serve(shared_fake, HALT_CORS_ORIGINS=f"{SHOP}, {DEV}")
    yield server
    server.close()


@pytest.fixture(scope="module")
def wildcard_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with a token whose setting allows every origin."""
    server = serve(shared_fake, HALT_CORS_ORIGINS="*", HALT_TOKEN=TOKEN)
    yield server
    server.close()


def preflight(server: HaltServer, path: str, origin: str, **headers: str) -> HttpResponse:
    request_headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return server.client().request("OPTIONS", path, headers=request_headers)


def header_items(value: str) -> set[str]:
    return {part.strip() for part in value.lower().split(",")}


def cors_headers(answer: HttpResponse) -> set[str]:
    """The CORS headers of a response."""
    return {name for name in answer.headers if name.startswith("access-control-")}


def test_no_cors_origins_grants_nothing(halt: HaltServer) -> None:
    """Without the setting no response grants an origin anything, and other sites start nothing."""
    client = halt.client(Origin=SHOP)
    assert cors_headers(preflight(halt, "/chat/stream", SHOP)) == set()
    for answer in (client.get("/healthz"), client.post("/chat/stream", CHAT)):
        assert cors_headers(answer) == set()
        assert "origin" not in answer.headers.get("vary", "").lower()
    assert client.post("/chat/stream", CHAT, Sec_Fetch_Site="cross-site").status == 403


@pytest.mark.parametrize("path", ["/chat/stream", "/chat", "/stop/0123456789", "/v1/models"])
def test_preflight_lists_methods_and_headers(listed_server: HaltServer, path: str) -> None:
    """A preflight of a listed origin gets the API's methods and headers, without credentials."""
    answer = preflight(listed_server, path, DEV)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers[ALLOWED] == DEV
    assert "origin" in header_items(answer.headers["vary"])
    assert header_items(answer.headers["access-control-allow-methods"]) == {"get", "post"}
    assert header_items(answer.headers["access-control-allow-headers"]) == {
        "authorization",
        "content-type",
        "last-event-id",
        "x-request-id",
        "x-stream-id",
    }
    assert "access-control-allow-credentials" not in answer.headers


def test_preflight_allows_headers_of_the_openai_client(listed_server: HaltServer) -> None:
    """The headers that OpenAI's client adds in a browser are allowed; other ones are not."""
    preflight_headers = {
        "Access-Control-Request-Headers": "x-stainless-os,x-stainless-lang,hx-request"
    }
    allowed = header_items(
        preflight(listed_server, "/v1/chat/completions", SHOP, **preflight_headers).headers[
            "access-control-allow-headers"
        ]
    )
    assert {"x-stainless-os", "x-stainless-lang"} <= allowed
    assert "hx-request" not in allowed


def test_listed_origin_can_stream_and_read_headers(listed_server: HaltServer) -> None:
    """A page of a listed origin can start and follow a stream, and read the exposed headers."""
    headers = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
    with listed_server.client().stream("POST", "/chat/stream", CHAT, headers) as events:
        events.to_end()
    assert events.status == 200
    assert events.text == "0 1 "
    assert events.headers[ALLOWED] == SHOP
    assert "origin" in header_items(events.headers["vary"])
    exposed = header_items(events.headers["access-control-expose-headers"])
    assert exposed == {"x-stream-id", "x-request-id", "retry-after"}
    assert events.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-credentials" not in events.headers


def test_listed_origin_can_use_an_event_source(listed_server: HaltServer) -> None:
    """GET /stream is refused like a POST, and allowed for the listed origins."""
    path = "/stream?prompt=Hello&model=count%3Fn%3D2"
    headers = {"Origin": SHOP, "Sec_Fetch_Site": "cross-site"}
    answer = listed_server.client().get(path, **headers)
    assert (answer.status, answer.headers[ALLOWED]) == (200, SHOP)
    # The request of an <img> element has no Origin header.
    assert listed_server.client().get(path, Sec_Fetch_Site="cross-site").status == 403


def test_error_responses_have_cors_headers(listed_server: HaltServer) -> None:
    """An error response has the same CORS headers as every other response."""
    answer = listed_server.client().get("/streams/no-such-stream", Origin=SHOP)
    assert (answer.status, answer.error["code"]) == (404, "unknown_stream")
    assert answer.headers[ALLOWED] == SHOP


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 404), ("POST", "/v1/embeddings", 404), ("GET", "/chat", 405)],
)
def test_unknown_path_has_cors_headers(
    listed_server: HaltServer, method: str, path: str, status: int
) -> None:
    """A 404 has CORS headers, so that a page sees the wrong address and no CORS failure."""
    assert preflight(listed_server, path, SHOP).headers[ALLOWED] == SHOP
    headers = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
    answer = listed_server.client().request(method, path, headers=headers)
    assert (answer.status, answer.headers[ALLOWED]) == (status, SHOP)
    assert "origin" in header_items(answer.headers["vary"])
    unlisted = listed_server.client().request(
        method, path, headers={"Origin": "https://evil.example"}
    )
    assert cors_headers(unlisted) == set()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://shop.example", f"{SHOP}.evil.example", "//["]
)
def test_unlisted_origin_is_granted_nothing(listed_server: HaltServer, origin: str) -> None:
    """An origin that differs from the list in one character is granted nothing."""
    assert cors_headers(preflight(listed_server, "/chat/stream", origin)) == set()
    refused = listed_server.client().post(
        "/chat/stream", CHAT, Origin=origin, Sec_Fetch_Site="cross-site"
    )
    assert (refused.status, refused.error["code"]) == (403, "foreign_site")
    assert cors_headers(refused) == set()
    assert "origin" in header_items(refused.headers["vary"])
    assert refused.headers["cross-origin-resource-policy"] == "same-origin"


def test_page_routes_refuse_a_listed_origin(listed_server: HaltServer) -> None:
    """A listed origin can use the API, but no route of the page."""
    client = listed_server.client()
    assert cors_headers(client.get("/", Origin=SHOP, Sec_Fetch_Site="cross-site")) == set()
    assert cors_headers(preflight(listed_server, "/c/0123456789/messages", SHOP)) == set()
    body = b"prompt=Hello"
    refused = client.post("/c/0123456789/messages", body, Content_Type=FORM, Origin=SHOP)
    assert refused.status == 403


def page_routes(app: Flask) -> list[tuple[str, str]]:
    """Method and path of every route that is not for programs, without static files."""
    routes = []
    for rule in app.url_map.iter_rules():
        blueprint = rule.endpoint.partition(".")[0]
        if rule.endpoint == "static" or not API.isdisjoint({rule.endpoint, blueprint}):
            continue
        path = re.sub("<[^>]*>", "0123456789", rule.rule)
        routes += [(method, path) for method in sorted((rule.methods or set()) - {"HEAD"})]
    return routes


def app_without_model(tmp_path: Path, origins: tuple[str, ...]) -> Flask:
    """The application in this process; its model's server does not exist."""
    return create_app(
        Config(
            base_url="http://127.0.0.1:9/v1",
            api_key="fake",
            data=str(tmp_path),
            cors_origins=origins,
            titles="words",
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("origin", [SHOP, "null", "http://127.0.0.1:5173"])
@pytest.mark.parametrize("listed_origins", [(SHOP, "http://127.0.0.1:5173"), ("*",), ()], ids=str)
@pytest.mark.parametrize("site", [None, "cross-site", "same-site"])
def test_every_page_route_refuses_other_origins(
    tmp_path: Path, origin: str, listed_origins: tuple[str, ...], site: str | None
) -> None:
    """Every page route refuses other origins by every method, also with a session's cookies."""
    app = app_without_model(tmp_path, listed_origins)
    later_blueprint = Blueprint("novelty", __name__)
    later_blueprint.add_url_rule(
        "/novelty", "all", lambda: session.get("owner", ""), methods=["GET"]
    )
    app.register_blueprint(later_blueprint)
    browser = app.test_client()
    assert browser.get("/").status_code == 200
    before = browser.get("/novelty").text
    assert before
    headers = {"Origin": origin, "Sec-Fetch-Mode": "cors"}
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    routes = page_routes(app)
    assert {("GET", "/c/0123456789"), ("POST", "/import"), ("GET", "/export")} <= set(routes)
    assert ("GET", "/novelty") in routes
    for method, path in [*routes, ("POST", "/novelty"), ("GET", "/import")]:
        answer = browser.open(path, method=method, headers=headers)
        assert [name for name, _ in answer.headers if name.startswith("Access-Control")] == []
        assert "Set-Cookie" not in answer.headers, path
        if method != "OPTIONS":
            assert answer.status_code == 403, (method, path)
            assert answer.get_json()["error"]["code"] == "foreign_site"
    assert browser.get("/novelty").text == before


def test_request_of_another_origin_sets_no_cookie(listed_server: HaltServer) -> None:
    """No request of another origin changes the session, whether it is allowed or refused."""
    browser = listed_server.client()
    browser.get("/")
    before = dict(browser.cookies)
    new_client = listed_server.client()
    for path in ("/", "/conversations", "/export", "/streams", "/healthz", "/v1/models", "/login"):
        for client in (browser, new_client):
            for headers in (
                {"Origin": SHOP},
                {"Origin": DEV, "Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
                {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
                {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
            ):
                answer = client.get(path, **headers, Accept="text/html")
                assert "set-cookie" not in answer.headers, (path, headers)
    for path in ("/chat", "/import", "/c/0123456789/messages"):
        assert "set-cookie" not in browser.post(path, CHAT, Origin=SHOP).headers
    assert (browser.cookies, new_client.cookies) == (before, {})


def test_link_from_another_site_opens_the_page(listed_server: HaltServer) -> None:
    """A link from another site opens the page with the visitor's session, or with a new one."""
    browser = listed_server.client(Accept="text/html")
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    answer = browser.get("/", **headers)
    assert (answer.status, "set-cookie" in answer.headers) == (200, True)
    assert browser.get("/", **headers).status == 200
    assert len(browser.cookies) == 1


def test_cookie_from_another_origin_is_ignored(listed_server: HaltServer) -> None:
    """A user's cookie gives a page of another origin no access to that user's streams."""
    browser = listed_server.client()
    browser.get("/")
    stream_id = new_id()
    with browser.chat("stall?n=2", id=stream_id) as events:
        events.until_text("1 ")
        assert browser.cookies
        assert browser.get(f"/streams/{stream_id}", Origin=SHOP).status == 404
        assert browser.get("/streams", Origin=SHOP).json == {"streams": []}
        stopped = browser.post(f"/stop/{stream_id}", Origin=SHOP)
        assert (stopped.status, stopped.json["status"]) == (202, "pending")
        same_origin = browser.post(f"/stop/{stream_id}", Origin=listed_server.url)
        assert (same_origin.status, same_origin.json["status"]) == (200, "stopped")
        events.to_end()


def test_login_cookie_is_ignored_for_another_origin(wildcard_server: HaltServer) -> None:
    """With HALT_TOKEN another origin's page must send the token; the preflight needs none."""
    browser = wildcard_server.client()
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    assert browser.get("/streams").status == 200
    refused = browser.get("/streams", Origin=SHOP)
    assert (refused.status, refused.headers[ALLOWED]) == (401, "*")
    allowed = browser.get("/streams", Origin=SHOP, Authorization=f"Bearer {TOKEN}")
    assert (allowed.status, allowed.headers[ALLOWED]) == (200, "*")
    assert preflight(wildcard_server, "/streams", SHOP).status == 204


@pytest.mark.parametrize("origin", [SHOP, "null"])
def test_wildcard_origin_has_no_credentials(wildcard_server: HaltServer, origin: str) -> None:
    """With HALT_CORS_ORIGINS=* the header is `*`, for which browsers neither send nor store
    cookies.
    """
    client = wildcard_server.client(Authorization=f"Bearer {TOKEN}")
    for answer in (
        preflight(wildcard_server, "/chat", origin),
        client.post("/chat", CHAT, Origin=origin, Sec_Fetch_Site="cross-site"),
    ):
        assert answer.status in {200, 204}
        assert answer.headers[ALLOWED] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        assert "set-cookie" not in answer.headers


def test_own_page_keeps_its_session(wildcard_server: HaltServer) -> None:
    """Requests of Halt's own page name an origin too, and are treated as same-site."""
    browser = wildcard_server.client()
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    for same_origin_headers in (
        {"Sec_Fetch_Site": "same-origin", "Origin": SHOP},
        {"Origin": wildcard_server.url},
    ):
        answer = browser.post("/stop/0123456789", **same_origin_headers)
        assert answer.status == 202
        assert cors_headers(answer) == set()


def test_listed_origin_can_open_a_websocket(listed_server: HaltServer) -> None:
    """WebSockets follow the same list, and have no session for a listed origin."""
    browser = listed_server.client()
    browser.get("/")
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    stream_id = new_id()
    with browser.chat("stall?n=2", id=stream_id) as events:
        events.until_text("1 ")
        with WebSocket(listed_server, origin=DEV, Sec_Fetch_Site="cross-site", Cookie=cookie) as ws:
            assert ws.stop(stream_id)["status"] == "pending"
        browser.stop(stream_id)


@pytest.mark.parametrize(
    "value",
    [
        "shop.example",
        "https://shop.example/",
        "https://shop.example/path",
        "https://Shop.example",
        "https://shop.example:443",
        "http://shop.example:80",
        "https://shop.example:",
        "https://me@shop.example",
        "https://*.example",
        "https://shop.example?",
        "https://shöp.example",
        "ftp://shop.example",
        "https://",
        "https://shop.example:99999",
        "null",
        "https://one.example,https://two.example/",
    ],
)
def test_invalid_origin_in_the_setting_stops_the_start(value: str) -> None:
    """An origin in the setting that no browser sends is a one-line error at the start."""
    with pytest.raises(ConfigError, match=r"^HALT_CORS_ORIGINS=.* is not an origin: .*$"):
        load({"HALT_CORS_ORIGINS": value})


@pytest.mark.parametrize(
    "value", ["*", SHOP, f"{SHOP}, {DEV}", "http://[::1]:3000", "https://xn--shp-fka.example:8443"]
)
def test_valid_origins_in_the_setting_are_accepted(value: str) -> None:
    """The setting takes any number of origins, separated by commas."""
    assert ", ".join(load({"HALT_CORS_ORIGINS": value}).cors_origins) == value

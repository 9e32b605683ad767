"""Limits of starts: which requests count, for which client, and how a refusal is reported.

Each test has its own address, in the header of a trusted proxy.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import openai
import pytest
from flask import Flask

from halt.app import create_app
from halt.config.environment import load
from halt.config.settings import Config, ConfigError
from halt.errors import TooManyRequests
from halt.store import rate_counters
from halt.testing.fake_openai import FakeOpenAI
from halt.web import rate_limits
from halt.web.rate_limits import RateLimits
from halt.web.requests import client_address
from halt.web.services import services
from halt.web.starts import count_starts
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    HaltServer,
    StartHalt,
    new_id,
    refused_start,
    request_record,
    settings,
)
from tests.support.http_client import Client, HttpResponse
from tests.support.waiting import SERVER_TIMEOUT, wait_until
from tests.support.websocket_client import WebSocket

STARTS = 3  # of an address
OF_SESSION = 2  # of a browser's session
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "model": "echo"}
PAGE = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
CODE = "too_many_requests"

hosts = itertools.count(1)


@pytest.fixture(scope="module")
def limited_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with both limits, behind a proxy."""
    server = HaltServer(
        settings(
            shared_fake,
            HALT_RATE_ADDRESS=f"{STARTS}/hour; 100/day",
            HALT_RATE_SESSION=f"{OF_SESSION} per hour",
            HALT_TRUSTED_PROXIES=1,
        )
    )
    yield server
    server.close()


@pytest.fixture
def client(limited_halt: HaltServer) -> Client:
    """A program at an address that no other test uses."""
    return limited_halt.client(**{"X-Forwarded-For": f"10.0.0.{next(hosts)}"})


@pytest.fixture
def browser(client: Client) -> Client:
    """A browser with a session at an address that no other test uses."""
    assert client.get("/").status == 200
    return client


def chat_stream(client: Client) -> HttpResponse:
    return client.post("/chat/stream", HELLO)


def chat(client: Client) -> HttpResponse:
    return client.post("/chat", HELLO)


def whole_answer(client: Client) -> HttpResponse:
    return client.post("/chat", HELLO, Accept="application/json")


def event_source(client: Client) -> HttpResponse:
    return client.get(f"/stream?{urlencode({'prompt': 'Hello', 'model': 'echo'})}")


def completions(client: Client) -> HttpResponse:
    return client.post("/v1/chat/completions", {**HELLO, "stream": True})


def form(client: Client, path: str, **fields: str | list[str]) -> HttpResponse:
    """Send a form as the page does."""
    return client.request("POST", path, urlencode(fields, doseq=True).encode(), PAGE)


SURFACES: list[Callable[[Client], HttpResponse]] = [
    chat_stream,
    chat,
    whole_answer,
    event_source,
    completions,
]


def use_up_starts(client: Client) -> None:
    """Use up the starts of the address."""
    for _ in range(STARTS):
        assert chat(client).status == 200
    assert chat(client).status == 429


def has_retry_after(answer: HttpResponse) -> bool:
    """Whether the refusal has a Retry-After of at most an hour."""
    return 0 < int(answer.headers["retry-after"]) <= 3600


# --- starts that count ----------------------------------------------------------------------------


@pytest.mark.parametrize("surface", SURFACES)
def test_start_over_the_limit_is_refused_with_retry_after(
    surface: Callable[[Client], HttpResponse], client: Client
) -> None:
    """On each route the starts of the limit are answered, and the next is 429 with Retry-After."""
    for _ in range(STARTS):
        assert surface(client).status == 200
    refusal = surface(client)
    assert refusal.status == 429
    assert has_retry_after(refusal)


def test_routes_share_one_count(client: Client) -> None:
    """An address that has used its starts on some routes is refused on all of them."""
    for start in (chat_stream, chat, event_source):
        assert start(client).status == 200
    for surface in SURFACES:
        refusal = surface(client)
        assert (refusal.status, has_retry_after(refusal)) == (429, True)
        error = refusal.json["error"]
        assert "3 per hour" in error["message"]
        if surface is completions:
            assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        else:
            assert (error["code"], error["retryable"]) == (CODE, True)


def test_refused_start_sends_no_request_to_the_model(
    client: Client, shared_fake: FakeOpenAI
) -> None:
    """A refused start sends no request to the model's server."""
    use_up_starts(client)
    prompt = new_id()
    body = {**HELLO, "messages": [{"role": "user", "content": prompt}]}
    assert client.post("/chat", body).status == 429
    assert prompt not in json.dumps([request.body for request in shared_fake.requests])


def test_openai_client_raises_rate_limit_error(limited_halt: HaltServer, client: Client) -> None:
    """OpenAI's client raises RateLimitError, with the time of the next try."""
    use_up_starts(client)
    with (
        openai.OpenAI(
            base_url=f"{limited_halt.url}/v1",
            api_key="none",
            max_retries=0,
            default_headers=client.headers,
        ) as openai_client,
        pytest.raises(openai.RateLimitError) as error_info,
    ):
        openai_client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "Hello"}]
        )
    assert error_info.value.code == "rate_limit_exceeded"
    assert 0 < int(error_info.value.response.headers["retry-after"]) <= 3600


def test_websocket_start_over_the_limit_is_an_error_frame(
    limited_halt: HaltServer, client: Client
) -> None:
    """A start over the limit is an error frame of its stream; the socket and its streams go on."""
    with WebSocket(limited_halt, X_Forwarded_For=client.headers["X-Forwarded-For"]) as ws:
        ids = [ws.start("count?n=1000000&rate=50") for _ in range(STARTS)]
        stream_id = new_id()
        ws.send(type="start", id=stream_id, **HELLO)
        error = ws.until("error", stream_id)["error"]
        assert (error["code"], error["retryable"]) == (CODE, True)
        assert 0 < error["retry_after"] <= 3600
        for used_id in ids:
            assert ws.stop(used_id)["status"] == "stopped"
            assert ws.to_end(used_id)["type"] == "cancelled"


# --- requests that do not count -------------------------------------------------------------------


def test_client_over_the_limit_can_stop_read_and_list(
    limited_halt: HaltServer, client: Client, shared_fake: FakeOpenAI
) -> None:
    """Stop, replay, lists, health, pages and files are never refused by a rate limit."""
    browser = limited_halt.client(**client.headers)  # of the same address; it gets a session
    prompt = new_id()
    with client.chat("count?n=1000000&rate=50", prompt) as running_stream:
        running_stream.until_text("0 ")
        for _ in range(STARTS - 1):
            assert chat(client).status == 200
        assert chat(client).status == 429
        for path in ("/", "/static/css/base.css", "/healthz", "/streams", "/models", "/v1/models"):
            for _ in range(STARTS + 1):
                assert browser.get(path).status == 200, path
        with client.follow(running_stream.id) as replay:
            replay.until_text("0 ")
        assert client.stop(running_stream.id).json["status"] == "stopped"
        assert request_record(shared_fake, prompt).closed.wait(RECORD_TIMEOUT)
        for _ in range(STARTS + 1):
            assert client.stop(running_stream.id).json["status"] == "finished"


def test_eventsource_reconnect_counts_as_no_start(client: Client) -> None:
    """An EventSource that reconnects with an event ID or its stream's ID starts nothing."""
    stream_id = new_id()
    path = f"/stream?{urlencode({'prompt': 'Hello', 'model': 'echo', 'id': stream_id})}"
    first = client.get(path)
    assert first.status == 200
    end = first.body.split(b"\n\n")[-2]
    assert b'"type":"done"' in end
    for _ in range(STARTS + 1):
        assert end in client.get(path).body
        assert client.get(path, Last_Event_ID=f"{stream_id}.0").body.count(end) == 1
    for _ in range(STARTS - 1):
        assert chat(client).status == 200
    assert event_source(client).status == 429
    assert end in client.get(path).body
    assert client.get(path, Last_Event_ID=f"{stream_id}.0").body.count(end) == 1


def test_malformed_request_counts_as_no_start(client: Client) -> None:
    """A malformed request starts nothing and is not counted."""
    for _ in range(STARTS + 1):
        assert client.post("/chat", {"messages": "none"}).status == 400
        assert client.get("/stream?prompt=").status == 400
    use_up_starts(client)


# --- sessions and addresses -----------------------------------------------------------------------


def test_session_limit_does_not_use_up_the_address_limit(
    limited_halt: HaltServer, browser: Client
) -> None:
    """A session over its limit is refused, and its refused starts do not count for the address."""
    for _ in range(OF_SESSION):
        assert chat(browser).status == 200
    for _ in range(STARTS):
        refusal = chat(browser)
        assert (refusal.status, "2 per hour" in refusal.error["message"]) == (429, True)
    other_browser = limited_halt.client(**browser.headers)
    assert other_browser.get("/").status == 200
    assert chat(other_browser).status == 200
    refusal = chat(other_browser)
    assert (refusal.status, "3 per hour" in refusal.error["message"]) == (429, True)


def test_forwarded_address_is_the_one_added_by_the_proxy(
    limited_halt: HaltServer, client: Client
) -> None:
    """Addresses that a client invents before the proxy's own entry are ignored."""
    client_address = client.headers["X-Forwarded-For"]
    for n in range(STARTS):
        client.headers["X-Forwarded-For"] = f"203.0.113.{n}, {client_address}"
        assert chat(client).status == 200
    client.headers["X-Forwarded-For"] = f"203.0.113.99, {client_address}"
    assert chat(client).status == 429


def test_forwarded_header_without_a_trusted_proxy_is_ignored(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Without a trusted proxy X-Forwarded-For is ignored."""
    server = start_halt(shared_fake, HALT_RATE_ADDRESS="1/hour")
    assert chat(server.client(**{"X-Forwarded-For": "10.0.0.1"})).status == 200
    assert chat(server.client(**{"X-Forwarded-For": "10.0.0.2"})).status == 429


@pytest.mark.parametrize(
    ("remote_address", "counted_address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("192.0.2.7:51000", "192.0.2.7"),
        ("[2001:db8:1:2::1]:443", "2001:db8:1:2::/64"),
        ("somewhere", "somewhere"),
        ("", ""),
    ],
)
def test_client_address_is_the_ipv4_address_or_the_ipv6_network(
    remote_address: str, counted_address: str
) -> None:
    """An IPv4 client is counted by its address, an IPv6 client by its /64 network."""
    with Flask(__name__).test_request_context(environ_base={"REMOTE_ADDR": remote_address}):
        assert client_address() == counted_address


# --- the page -------------------------------------------------------------------------------------


def test_refused_message_of_the_page_is_a_notice_and_is_not_saved(browser: Client) -> None:
    """The page gets a notice, and the conversation stays as it was."""
    path, other_path = f"/c/{new_id()}", f"/c/{new_id()}"
    assert form(browser, f"{path}/messages", prompt="hello there").status == 200
    wait_until(lambda: b'data-state="done"' in browser.get(path).body, SERVER_TIMEOUT)
    assert form(browser, f"{path}/regenerate").status == 200
    wait_until(lambda: b'data-state="done"' in browser.get(path).body, SERVER_TIMEOUT)
    for refusal in (
        form(browser, f"{path}/messages", prompt="one too many"),
        form(browser, f"{path}/regenerate"),
        form(browser, f"{other_path}/messages", prompt="one too many"),
    ):
        assert (refusal.status, has_retry_after(refusal)) == (429, True)
        assert refusal.headers["hx-retarget"] == "#notice"
        assert b"Too many answers were started" in refusal.body
    page = browser.get(path).body
    assert b'data-state="done"' in page
    assert b"one too many" not in page
    assert b"one too many" not in browser.get(other_path).body


def test_each_model_of_a_comparison_counts_as_a_start(browser: Client) -> None:
    """The models of a comparison are all started or none; more than the limit allows is 400."""

    def send(*models: str) -> HttpResponse:
        return form(browser, f"/c/{new_id()}/messages", prompt="Hello", model=list(models))

    response = send("echo", "count?n=1", "count?n=2")
    assert (response.status, "retry-after" in response.headers) == (400, False)
    assert b"At most 2 answers" in response.body
    assert send("echo").status == 200
    assert send("echo", "count?n=1").status == 429
    assert send("echo").status == 200
    assert send("echo").status == 429


# --- settings and memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", ["30", "/minute", "0/minute", "-1/hour", "3/fortnight", "3/minute;", "3/m", "1,5/hour"]
)
@pytest.mark.parametrize("env", ["HALT_RATE_SESSION", "HALT_RATE_ADDRESS"])
def test_wrong_rate_is_refused_in_one_line(env: str, rate: str) -> None:
    """A wrong rate is refused in one line with the variable, its value and a valid rate."""
    with pytest.raises(ConfigError) as error_info:
        load({env: rate})
    message = str(error_info.value)
    assert f"{env}={rate!r}" in message
    assert "30/minute" in message
    assert "\n" not in message


def test_server_start_with_a_wrong_rate_is_refused() -> None:
    """The server does not start, and the error is the last line that it prints."""
    status, output = refused_start(HALT_RATE_ADDRESS="often")
    assert status != 0
    assert output.splitlines()[-1].startswith("halt: HALT_RATE_ADDRESS='often'")


def make_rate_limits(**settings: Any) -> tuple[Flask, RateLimits]:
    """An application and its limits."""
    data = tempfile.mkdtemp()
    app = create_app(Config(base_url="http://127.0.0.1:9/v1", data=data, **settings))
    limits = services(app).rate_limits
    assert isinstance(limits, RateLimits)
    return app, limits


@pytest.mark.parametrize(
    ("rate", "starts"),
    [("2/minute", 2), ("3 per 10 seconds", 3), ("9/hour;4/DAY", 4), ("5/minute; 5/minute", 5)],
)
def test_rate_accepts_several_notations_and_the_strictest_limit(rate: str, starts: int) -> None:
    """The strictest of several limits holds; equal limits count as one."""
    app, limits = make_rate_limits(rate_address=load({"HALT_RATE_ADDRESS": rate}).rate_address)
    with app.test_request_context():
        for _ in range(starts):
            limits.count(1)
        with pytest.raises(TooManyRequests, match=f"{starts} per "):
            limits.count(1)


def test_default_settings_have_no_rate_limit() -> None:
    """By default there is no rate limit and no counter."""
    app = create_app(Config(base_url="http://127.0.0.1:9/v1"))
    assert services(app).rate_limits is None
    assert "limiter" not in app.extensions


class Clock:
    """Replaces the module `time`; a test sets the time."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def time(self) -> float:
        return self.seconds


def test_ended_window_allows_starts_and_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a window ends its client may start again, and the rows of all ended windows are
    deleted."""
    clock = Clock()
    for module in (rate_limits, rate_counters):
        monkeypatch.setattr(module, "time", clock)
    app, limits = make_rate_limits(rate_address="1/second")

    def starts(host: str) -> bool:
        with (
            app.test_request_context(environ_base={"REMOTE_ADDR": host}),
            contextlib.suppress(TooManyRequests),
        ):
            limits.count(1)
            return True
        return False

    for n in range(100):
        assert starts(f"192.0.2.{n}")
    assert not starts("192.0.2.99")
    with contextlib.closing(sqlite3.connect(services(app).config.data_folder / "rates.db")) as file:

        def size() -> int:
            return int(file.execute("SELECT COUNT(*) FROM windows").fetchone()[0])

        assert size() > 50
        clock.seconds += 1.0
        assert starts("192.0.2.99")
        assert size() < 3


def test_workers_share_one_count(tmp_path: Path) -> None:
    """Two workers with one data folder allow together the starts of one limit."""
    config = Config(base_url="http://127.0.0.1:9/v1", data=str(tmp_path), rate_address="5/hour")
    apps = [create_app(config) for _ in range(2)]
    for number in range(5):
        with apps[number % 2].test_request_context():
            count_starts()
    for app in apps:
        with app.test_request_context(), pytest.raises(TooManyRequests):
            count_starts()


def test_start_with_a_broken_counter_file_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a broken counter file starts are allowed, and the error is logged."""
    (tmp_path / "rates.db").write_text("this is no database, and is left as it is" * 100)
    app = create_app(
        Config(base_url="http://127.0.0.1:9/v1", data=str(tmp_path), rate_address="1/hour")
    )
    with app.test_request_context():
        for _ in range(3):
            count_starts()
    assert "cannot be counted" in caplog.text

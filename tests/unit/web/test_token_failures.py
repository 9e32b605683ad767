"""Wrong access tokens: counted by address and refused over a limit; the right one is accepted."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator

import openai
import pytest

from halt.testing.fake_openai import FakeOpenAI
from halt.web import token_failures
from halt.web.token_failures import ADDRESSES_MAX, WINDOW, WRONG_MAX, TokenFailures
from tests.support.halt_server import HaltServer, settings
from tests.support.http_client import Client, HttpResponse

TOKEN = "a-token-for-tests"
WRONG = "not-the-token"
FORM = "application/x-www-form-urlencoded"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "model": "echo"}
SHOP = "https://shop.example"

hosts = itertools.count(1)


@pytest.fixture(scope="module")
def token_halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with a token, one worker, behind a proxy; no rate limit is set."""
    environment = settings(
        shared_fake, HALT_TOKEN=TOKEN, HALT_TRUSTED_PROXIES=1, HALT_CORS_ORIGINS=SHOP
    )
    server = HaltServer(environment)
    yield server
    server.close()


@pytest.fixture
def address() -> str:
    """An address that no other test uses."""
    return f"10.1.0.{next(hosts)}"


def bearer(server: HaltServer, address: str, token: str = WRONG, **headers: str) -> Client:
    return server.client(
        **{"Authorization": f"Bearer {token}", "X-Forwarded-For": address, **headers}
    )


def use_up_attempts(client: Client) -> None:
    """Send as many wrong tokens as are answered 401."""
    for _ in range(WRONG_MAX):
        assert client.post("/stop/0123456789").status == 401


def has_retry_after(answer: HttpResponse) -> bool:
    """Whether the refusal has a Retry-After within the window."""
    return 0 < int(answer.headers["retry-after"]) <= WINDOW


Route = Callable[[Client], HttpResponse]

ROUTES: dict[str, Route] = {
    "stop": lambda client: client.post("/stop/0123456789"),
    "stop by form": lambda client: client.post("/stop", b"stream_id=0123456789", Content_Type=FORM),
    "start": lambda client: client.post("/chat/stream", HELLO),
    "text": lambda client: client.post("/chat", HELLO),
    "event source": lambda client: client.get("/stream?prompt=Hello"),
    "page": lambda client: client.get("/"),
    "list": lambda client: client.get("/conversations"),
    "unknown": lambda client: client.get("/nothing"),
    "socket": lambda client: client.get("/ws", Upgrade="websocket", Connection="Upgrade"),
    "inspection": lambda client: client.get("/streams", X_Halt_Inspect="1"),
    "inspection of an open route": lambda client: client.get("/healthz", X_Halt_Inspect="1"),
}


@pytest.mark.parametrize("send_request", ROUTES.values(), ids=ROUTES)
def test_wrong_token_on_any_route_counts_and_is_refused_over_the_limit(
    token_halt: HaltServer, address: str, send_request: Route
) -> None:
    """Wrong tokens on any route count, and over the limit the route and Stop answer 429 with the
    time to wait.
    """
    client = bearer(token_halt, address)
    for _ in range(WRONG_MAX):
        assert send_request(client).status != 429
    for refusal in (send_request(client), client.post("/stop/0123456789")):
        assert (refusal.status, has_retry_after(refusal)) == (429, True)
        assert (refusal.error["code"], refusal.error["retryable"]) == ("too_many_requests", False)
        assert "wrong access tokens" in refusal.error["message"]


def test_login_form_counts_wrong_tokens_and_accepts_the_right_one(
    token_halt: HaltServer, address: str
) -> None:
    """Over the limit the form shows the refusal; the right token still logs in."""
    browser = token_halt.client(**{"X-Forwarded-For": address, "Accept": "text/html"})
    for _ in range(WRONG_MAX):
        assert browser.post("/login", f"token={WRONG}".encode(), Content_Type=FORM).status == 401
    refusal = browser.post("/login", f"token={WRONG}".encode(), Content_Type=FORM)
    assert (refusal.status, has_retry_after(refusal)) == (429, True)
    assert b"Too many wrong access tokens" in refusal.body
    assert b'name="token"' in refusal.body
    assert bearer(token_halt, address).get("/streams").status == 429  # one count for all routes
    assert browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM).status == 302
    assert browser.get("/").status == 200


def test_openai_client_gets_a_rate_limit_error_without_a_retry(
    token_halt: HaltServer, address: str
) -> None:
    """OpenAI's client raises RateLimitError and gets a header that forbids a retry."""
    use_up_attempts(bearer(token_halt, address))
    with (
        openai.OpenAI(
            base_url=f"{token_halt.url}/v1",
            api_key=WRONG,
            default_headers={"X-Forwarded-For": address},
        ) as openai_client,
        pytest.raises(openai.RateLimitError) as error_info,
    ):
        openai_client.models.list()
    assert error_info.value.code == "rate_limit_exceeded"
    assert error_info.value.response.headers["x-should-retry"] == "false"
    assert 0 < int(error_info.value.response.headers["retry-after"]) <= WINDOW


def test_refusal_is_readable_by_an_allowed_origin(token_halt: HaltServer, address: str) -> None:
    """The refusal has the CORS header of an allowed origin."""
    client = bearer(token_halt, address, Origin=SHOP)
    use_up_attempts(client)
    refusal = client.post("/chat", HELLO)
    assert (refusal.status, refusal.headers["access-control-allow-origin"]) == (429, SHOP)


def test_refusal_of_an_htmx_request_goes_to_the_notice(
    token_halt: HaltServer, address: str
) -> None:
    """The refusal of a request of the page is shown in its notice."""
    client = bearer(token_halt, address, **{"HX-Request": "true"})
    use_up_attempts(client)
    refusal = client.post("/stop/0123456789")
    assert (refusal.status, refusal.headers["hx-retarget"]) == (429, "#notice")
    assert b"Too many wrong access tokens" in refusal.body


def test_right_token_is_accepted_over_the_limit(token_halt: HaltServer, address: str) -> None:
    """The right token is accepted from an address over the limit and does not change its count."""
    wrong_client, right_client = bearer(token_halt, address), bearer(token_halt, address, TOKEN)
    use_up_attempts(wrong_client)
    assert wrong_client.get("/streams").status == 429
    assert right_client.get("/streams").status == 200
    assert right_client.post("/chat", HELLO).body == b"Hello"
    assert wrong_client.get("/streams").status == 429


def test_wrong_tokens_of_one_address_do_not_refuse_another(
    token_halt: HaltServer, address: str
) -> None:
    """Addresses are counted apart; an IPv6 client is counted by its network."""
    use_up_attempts(bearer(token_halt, address))
    assert bearer(token_halt, f"10.2.0.{next(hosts)}").get("/streams").status == 401
    use_up_attempts(bearer(token_halt, "2001:db8:1:2::1"))
    assert bearer(token_halt, "2001:db8:1:2:ffff::9").get("/streams").status == 429
    assert bearer(token_halt, "2001:db8:1:3::1").get("/streams").status == 401


@pytest.mark.parametrize("credentials", [None, "Bearer", "Bearer ", "Basic YTpi"])
def test_request_without_a_token_is_not_counted(
    token_halt: HaltServer, address: str, credentials: str | None
) -> None:
    """A request without a token is answered 401 any number of times."""
    client = token_halt.client(**{"X-Forwarded-For": address})
    if credentials is not None:
        client.headers["Authorization"] = credentials
    for _ in range(2 * WRONG_MAX):
        assert client.get("/streams").status == 401
    assert client.post("/login", b"token=", Content_Type=FORM).status == 401


def test_open_routes_ignore_a_wrong_token(token_halt: HaltServer, address: str) -> None:
    """Health and static files are served over the limit and with a wrong token."""
    client = bearer(token_halt, address)
    use_up_attempts(client)
    for path in ("/healthz", "/static/css/base.css"):
        for _ in range(WRONG_MAX + 1):
            assert client.get(path).status == 200


def test_excess_is_logged_once_for_an_address_and_a_window(
    token_halt: HaltServer, address: str
) -> None:
    """An excess is logged in one line for an address and a window, without the token."""
    client = bearer(token_halt, address)
    for _ in range(3 * WRONG_MAX):
        client.get("/streams")
    token_halt.wait_printed(rf"{re.escape(address)}: more than {WRONG_MAX} wrong access tokens")
    assert token_halt.printed.count(f"{address}: ") == 1
    assert WRONG not in token_halt.printed


# --- table of addresses ---------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time, in seconds from the start of the test."""
    times = [1000.0]
    monkeypatch.setattr(token_failures, "now", lambda: times[0])

    def set_time(seconds: float) -> None:
        times[0] = 1000.0 + seconds

    return set_time


def test_window_ends_after_its_seconds_and_logs_again(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A window ends WINDOW seconds after its first wrong token; the next excess is logged again."""
    failures = TokenFailures()
    with caplog.at_level(logging.WARNING):
        for window in range(2):
            clock(window * WINDOW)
            assert [failures.count("10.0.0.1") for _ in range(WRONG_MAX)] == [0] * WRONG_MAX
            clock(window * WINDOW + WINDOW - 5)
            assert failures.count("10.0.0.1") == 5
            assert failures.count("10.0.0.1") == 5
            assert len(caplog.records) == window + 1


def test_table_of_addresses_is_bounded(clock: Callable[[float], None]) -> None:
    """The table of addresses is bounded: the least recently used are dropped, and a long address is
    cut.
    """
    failures = TokenFailures()
    for _ in range(WRONG_MAX):
        failures.count("10.0.0.1")
    for number in range(ADDRESSES_MAX - 1):
        failures.count(f"host-{number}")
    assert failures.count("10.0.0.1") > 0
    for number in range(ADDRESSES_MAX):
        failures.count(f"{number}\u2028{'x' * 100_000}")
    assert failures.count("10.0.0.1") == 0
    beginning = "y" * token_failures.ADDRESS_MAX
    for number in range(WRONG_MAX):
        assert failures.count(f"{beginning}{number}") == 0
    assert failures.count(beginning) > 0

"""Stop, health and other short requests: limits of their bodies; no database, template or file."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from flask import Flask

from halt.app import create_app
from halt.config import data_dir
from halt.config.settings import Config
from halt.store.database import Database
from halt.store.rate_counters import RateCounters
from halt.testing.fake_openai import FakeOpenAI
from halt.web import responses
from halt.web.security import FIELDS_MAX, SHORT_BODY_MAX
from halt.web.services import services
from halt.web.sessions import COOKIES_MAX
from tests.support.halt_server import HaltServer, new_id
from tests.support.http_client import READ_TIMEOUT

FORM = "application/x-www-form-urlencoded"
PAGE = {"HX-Request": "true"}
TOKEN = "a-token-for-tests"


@pytest.fixture
def app(fake: FakeOpenAI, tmp_path: Path) -> Iterator[Flask]:
    """The application in this process with all limits."""
    application = create_app(
        Config(
            base_url=fake.base_url,
            api_key="fake",
            data=str(tmp_path),
            token=TOKEN,
            rate_session="100/minute",
            rate_address="100/minute",
            cors_origins=("https://shop.example",),
            titles="words",
        )
    )
    services(application).sessions.prepare(application)
    yield application
    services(application).generations.close()
    services(application).store.close()


@pytest.fixture
def forbid_slow_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make calls that a Stop must not wait for fail in this thread, which serves the requests."""
    served_by = threading.get_ident()

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **keywords: Any) -> Any:
            if threading.get_ident() == served_by:
                pytest.fail("a Stop has used it")
            return function(*args, **keywords)

        return guarded

    def forbid_calls() -> None:
        for owner, name in (
            (Database, "reading"),
            (Database, "writing"),
            (RateCounters, "count"),
            (jinja2.Template, "render"),
            (jinja2.Environment, "get_template"),
            (responses, "render_template"),
            (data_dir, "secret_key"),
            (data_dir, "folder_id"),
        ):
            monkeypatch.setattr(owner, name, guard(getattr(owner, name)))

    return forbid_calls


def test_stop_and_health_use_no_database_template_or_rate_limit(
    app: Flask, forbid_slow_calls: Callable[[], None]
) -> None:
    """A Stop of the page, of a program, of all streams, a refused one and /healthz use none of
    them."""
    browser, program, other_client = app.test_client(), app.test_client(), app.test_client()
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    browser.post("/login", data={"token": TOKEN})
    first_id, second_id = new_id(), new_id()
    for stream_id in (first_id, second_id):
        form = {"prompt": "Hello", "id": stream_id, "model": "count?n=1000000&rate=50"}
        assert browser.post(f"/c/{new_id()}/messages", data=form, headers=PAGE).status_code == 200
    forbid_slow_calls()
    response = browser.post("/stop", data={"stream_id": first_id, "shown": "1"}, headers=PAGE)
    assert response.status_code == 200
    assert f'data-stream="{first_id}"' in response.text
    assert ">Stopped by you after " in response.text
    (receipt,) = browser.post("/stop-all").get_json()["stopped"]
    assert (receipt["id"], receipt["status"]) == (second_id, "stopped")
    assert browser.post(f"/stop/{first_id}").get_json()["status"] == "finished"
    assert program.post("/stop-all", headers=bearer).get_json() == {"stopped": []}
    assert program.get("/healthz").status_code == 200
    assert other_client.post("/stop", headers=PAGE).status_code == 401
    wrong_headers = {**PAGE, "Authorization": "Bearer wrong"}
    assert {other_client.post("/stop", headers=wrong_headers).status_code for _ in range(40)} == {
        401,
        429,
    }


SHORT = ["/stop", "/stop/0123456789", "/stop-all", "/login", "/c/0123456789/title"]


@pytest.mark.parametrize("path", SHORT)
@pytest.mark.parametrize("kind", [FORM, "application/json", "text/plain"])
def test_short_request_over_64_kb_is_refused(halt: HaltServer, path: str, kind: str) -> None:
    """A body over SHORT_BODY_MAX is refused with 413 as JSON; a body of that size is read."""
    response = halt.client().post(path, b"x" * (SHORT_BODY_MAX + 1), Content_Type=kind)
    assert (response.status, response.error["code"]) == (413, "too_large")
    assert response.error["message"] == f"The body is larger than {SHORT_BODY_MAX} bytes."
    assert response.error["field"] == "body"
    assert halt.client().post(path, b"x" * SHORT_BODY_MAX, Content_Type=kind).status != 413


def test_chunked_short_request_over_64_kb_is_refused(halt: HaltServer) -> None:
    """A chunked body without a length is refused over the same limit."""
    connection = http.client.HTTPConnection(halt.host, halt.port, timeout=READ_TIMEOUT)
    with contextlib.closing(connection):
        pieces = iter([b"x" * 40_000, b"y" * 40_000])
        connection.request("POST", "/stop", pieces, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, b"too_large" in response.read()) == (413, True)


@pytest.mark.parametrize("path", ["/stop", "/c/0123456789/messages"])
def test_form_with_too_many_fields_is_refused(halt: HaltServer, path: str) -> None:
    """A form with more than FIELDS_MAX fields is refused before it is parsed."""
    refusal = halt.client().post(path, b"a=1&" * FIELDS_MAX, Content_Type=FORM)
    assert (refusal.status, refusal.error["field"]) == (400, "body")
    assert "1,000 fields" in refusal.error["message"]
    response = halt.client().post(path, b"&".join([b"a=1"] * FIELDS_MAX), Content_Type=FORM)
    assert "fields" not in response.error["message"]


def test_json_with_a_form_content_type_is_read_as_json(halt: HaltServer) -> None:
    """JSON with a form's content type, curl's default, may hold any number of `&`."""
    body = b'{"prompt":"%b","model":"echo"}' % (b"&" * 2 * FIELDS_MAX)
    assert halt.client().post("/chat", body, Content_Type=FORM).body == b"&" * 2 * FIELDS_MAX


def test_request_with_too_many_cookies_has_no_session(app: Flask) -> None:
    """With more than COOKIES_MAX cookies a request has no session."""
    browser = app.test_client()
    answer = browser.post("/login", data={"token": TOKEN})
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    client = app.test_client(use_cookies=False)
    for value, status in (("x", 200), ("x" * COOKIES_MAX, 401)):
        headers = {"Cookie": f"more={value}; {cookie}"}
        assert client.get("/streams", headers=headers).status_code == status

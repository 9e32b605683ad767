"""Try: a provider is checked before it is saved, each result is a line, and its end ends it all."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, settings
from tests.support.http_client import EventStream
from tests.support.models_page import (
    HEADER_VALUE,
    KEY,
    OTHER_KEY,
    PATH,
    SECRETS,
    TRY,
    ModelsBrowser,
)
from tests.support.page_requests import FORM_HEADERS
from tests.support.simple_model_server import ModelRequest, serving
from tests.support.waiting import SERVER_TIMEOUT, wait_until

#: A model of the fake that is slower than the waits of these tests, and never silent for long: so
#: only a cancelled trial closes its connection in time.
SLOW = "count?n=1000&gap_ms=2000"


@pytest.fixture(scope="module")
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt of one person and one worker. Its output never holds a secret."""
    server = HaltServer(settings(shared_fake, HALT_ALLOW_ANONYMOUS=""))
    yield server
    server.close()
    for secret in SECRETS:
        assert secret not in server.printed


@pytest.fixture
def browser(server: HaltServer) -> ModelsBrowser:
    return ModelsBrowser(server.client())


def typed(fake: FakeOpenAI | str, **more: str) -> dict[str, str]:
    """The fields of a form."""
    address = fake if isinstance(fake, str) else fake.base_url
    return {"preset": "compatible", "title": "Tried", "base_url": address, "key": KEY, **more}


def read(stream: EventStream) -> list[str]:
    """The lines of a trial to its end."""
    assert stream.status == 200, stream.answer()
    lines = [event.data for event in stream]
    stream.close()
    for secret in SECRETS:
        assert secret not in "".join(lines)
    return lines


def until(stream: EventStream, words: str) -> None:
    """Read the lines of a trial up to the one with these words."""
    while (event := stream.next()) is not None:
        if words in event.data:
            return
    pytest.fail(f"no line has {words!r}: {stream.seen}")


def test_each_result_is_a_line(browser: ModelsBrowser, fake: FakeOpenAI) -> None:
    """Address, key, list, answer and Stop, in this order; the last line tells the result."""
    stream = browser.try_(TRY, **typed(fake, models="count?n=400&gap_ms=2"))
    lines = read(stream)
    assert stream.comments  # so that the head arrives at once
    names = [line.split("<b>")[1].split("</b>")[0] for line in lines[:-1]]
    assert names == ["address", "key", "models", "answer", "stop"]
    assert 'class="end">Nothing failed. It is not saved yet.' in lines[-1]
    assert browser.client.get(f"{PATH}/tried").status == 404


def test_without_scripts_the_page_has_all_results(browser: ModelsBrowser, fake: FakeOpenAI) -> None:
    """What was typed is still there, but the key has to be typed again."""
    response = browser.send(TRY, do="try", **typed(fake, models="count?n=400&gap_ms=2"))
    page = response.body.decode()
    assert response.status == 200
    assert page.count("<li data-status=") == 5
    assert "type them again before you connect" in page
    assert 'value="Tried"' in page
    assert f'value="{fake.base_url}"' in page


def test_saved_provider_is_tried_with_its_kept_key(
    browser: ModelsBrowser, fake: FakeOpenAI
) -> None:
    """An empty field tries the saved key and headers; another address gets neither."""
    header = [("header_name", "X-Team"), ("header_value", HEADER_VALUE)]
    path = browser.connect(fake.base_url, *header, title="Saved", key=KEY)
    trying = path.replace(PATH, f"{PATH}/try")
    same = typed(fake, key="", models="count?n=400&gap_ms=2")
    read(browser.try_(trying, ("header_name", "X-Team"), ("header_value", ""), **same))
    record = fake.wait_request(lambda record: record.method == "POST")
    assert record.headers["authorization"] == f"Bearer {KEY}"
    assert record.headers["x-team"] == HEADER_VALUE
    with FakeOpenAI() as other:
        read(browser.try_(trying, **(same | {"base_url": other.base_url})))
        for record in other.requests:
            assert KEY not in str(record.headers)
    response = browser.send(trying, do="try", **same)
    assert b"type them again" not in response.body
    browser.send(path, do="remove")


def test_refusal_is_in_the_servers_words_without_the_key(browser: ModelsBrowser) -> None:
    """A server that repeats the key in its error does not make it appear."""

    def refuse(request: ModelRequest) -> None:
        message = f"Nobody knows <b>{request.headers['Authorization']}</b>."
        request.reply({"error": {"message": message}}, 401)

    with serving(refuse) as address:
        lines = read(browser.try_(TRY, **typed(address, key=OTHER_KEY)))
        response = browser.send(TRY, do="try", **typed(address, key=OTHER_KEY))
    for text in ("\n".join(lines), response.body.decode()):
        assert "Nobody knows &lt;b&gt;" in text
        assert 'data-status="fail"' in text
        assert "It would not work like this." in text


def test_wrong_input_is_told_with_its_field(browser: ModelsBrowser, fake: FakeOpenAI) -> None:
    """The script gets the error as JSON, a page without scripts at the field; nobody is called."""
    wrong = typed(fake) | {"title": "☂"}
    answer = browser.try_(TRY, **wrong).answer()
    assert (answer.status, answer.error["field"]) == (400, "title")
    assert "at least one" in browser.refused(browser.send(TRY, do="try", **wrong), "title")
    assert not fake.requests


def test_departure_closes_the_connection_to_the_server(
    browser: ModelsBrowser, fake: FakeOpenAI
) -> None:
    """A client that leaves in the middle of a trial ends its request, with scripts and without."""
    stream = browser.try_(TRY, **typed(fake, models=SLOW))
    until(stream, "<b>models</b>")
    record = fake.wait_request(lambda record: record.method == "POST")
    assert not record.closed.is_set()
    stream.close()
    assert record.closed.wait(RECORD_TIMEOUT)

    connection = browser.client.connect()
    body = urlencode({"do": "try", **typed(fake, models=SLOW)}).encode()
    browser.client.send(connection, "POST", TRY, body, FORM_HEADERS)
    record = fake.wait_request(lambda record: record.method == "POST", nth=1)
    connection.close()
    assert record.closed.wait(RECORD_TIMEOUT)


def test_few_trials_run_at_once(browser: ModelsBrowser, fake: FakeOpenAI) -> None:
    """The fifth is refused with a time to wait, and does not queue; after an end one may start."""
    streams = []
    for n in range(4):
        streams.append(browser.try_(TRY, **typed(fake, models=SLOW)))
        until(streams[-1], "<b>models</b>")
        fake.wait_request(lambda record: record.method == "POST", nth=n)
    answer = browser.try_(TRY, **typed(fake)).answer()
    assert (answer.status, answer.error["code"]) == (503, "too_many_trials")
    assert int(answer.headers["retry-after"]) > 0
    refused = browser.send(TRY, do="try", **typed(fake))
    assert refused.status == 503
    assert "4 providers are being tried" in browser.refused(refused)
    streams.pop().close()

    def starts() -> bool:
        stream = browser.try_(TRY, **typed(fake, models=SLOW))
        streams.append(stream)
        return stream.status == 200

    wait_until(starts, SERVER_TIMEOUT)
    for stream in streams:
        stream.close()


def test_server_ends_while_a_trial_runs(fake: FakeOpenAI) -> None:
    """The end of the server ends its trials."""
    server = HaltServer(settings(fake, HALT_ALLOW_ANONYMOUS="", HALT_GRACEFUL_TIMEOUT=600))
    stream = ModelsBrowser(server.client()).try_(TRY, **typed(fake, models=SLOW))
    until(stream, "<b>models</b>")
    record = fake.wait_request(lambda record: record.method == "POST")
    server.close()
    assert record.closed.wait(RECORD_TIMEOUT)

"""Sign-ins and API tokens while the database does not answer, and in a worker that is new to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.frozen_sqlite import frozen_sqlite, unwritable_sqlite
from tests.support.halt_server import RECORD_TIMEOUT, new_id, request_record, settings
from tests.support.http_client import Client, HttpResponse
from tests.support.multi_worker import MultiWorkerHalt
from tests.support.people import make_api_token, store_at
from tests.support.server_people import ServerPeople

FORM = "application/x-www-form-urlencoded"
ENDLESS = "count?n=1000000&gap_ms=20"


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI) -> Iterator[MultiWorkerHalt]:
    """A Halt with accounts and two workers."""
    server = MultiWorkerHalt(2, settings(shared_fake, HALT_USERS=1))
    yield server
    server.close()


def stop_by_id(client: Client, stream_id: str) -> HttpResponse:
    return client.post(f"/stop/{stream_id}", b"")


def stop_by_body(client: Client, stream_id: str) -> HttpResponse:
    return client.post("/stop", {"stream_id": stream_id})


def stop_all(client: Client, _: str) -> HttpResponse:
    return client.post("/stop-all", b"")


def stop_of_page(client: Client, stream_id: str) -> HttpResponse:
    """The Stop of a page with scripts."""
    return client.post(
        "/stop", f"stream_id={stream_id}".encode(), Content_Type=FORM, HX_Request="true"
    )


@pytest.mark.parametrize("stop", [stop_by_id, stop_by_body, stop_all, stop_of_page])
@pytest.mark.parametrize("way", ["browser", "program"])
def test_stop_in_another_worker_while_the_database_is_frozen_ends_the_stream(
    halt: MultiWorkerHalt,
    shared_fake: FakeOpenAI,
    way: str,
    stop: Callable[[Client, str], HttpResponse],
) -> None:
    """The other worker has never seen the sign-in or API token, and cannot ask the database."""
    people = ServerPeople(halt)
    person = people.add("Ann")
    like = halt.client()
    headers = {}
    if way == "browser":
        name, value = people.cookie(person)
        like.cookies[name] = value
    people.close()
    if way == "program":
        store = store_at(halt.data_folder)
        headers["Authorization"] = f"Bearer {make_api_token(store, person)}"
        store.database.close()
    here, there = (halt.client_of(worker, like, **headers) for worker in halt.names)
    prompt = new_id()
    with here.chat(ENDLESS, prompt) as events:
        events.until_text("5")
        record = request_record(shared_fake, prompt)
        with frozen_sqlite(halt.data_folder):
            stopped = stop(there, events.id)
            assert stopped.status == 200, stopped
            assert record.closed.wait(RECORD_TIMEOUT)


def test_stop_without_scripts_while_the_database_is_frozen_ends_the_stream(
    halt: MultiWorkerHalt, shared_fake: FakeOpenAI
) -> None:
    """The page names its running answers, and the other worker learns whose browser it is."""
    people = ServerPeople(halt)
    client = people.client(people.add("Ann"))
    people.close()
    here, there = (halt.client_of(worker, client, Accept="text/html") for worker in halt.names)
    prompt, path = new_id(), f"/c/{new_id()}"
    fields = urlencode({"prompt": prompt, "model": ENDLESS}).encode()
    assert here.post(f"{path}/messages", fields, Content_Type=FORM).status == 303
    record = request_record(shared_fake, prompt)
    (running,) = re.findall(r'name="running" value="([^"]+)"', here.get(path).body.decode())
    with frozen_sqlite(halt.data_folder):
        stopped = there.post(f"{path}/stop", f"running={running}".encode(), Content_Type=FORM)
        assert stopped.status == 303, stopped
        assert record.closed.wait(RECORD_TIMEOUT)


def test_sign_out_while_nothing_can_be_saved_takes_the_sign_in_from_the_browser(
    halt: MultiWorkerHalt,
) -> None:
    """The browser is led to the sign-in, and the log has one line of it. "Sign out everywhere"
    reports the fault, and the browser stays signed in.
    """
    people = ServerPeople(halt)
    client = people.client(people.add("Ann"))
    people.close()
    browser = halt.client_of(halt.names[0], client, Accept="text/html")
    line = "a browser has signed out, and its sign-in stays in the database"
    with unwritable_sqlite(halt.data_folder):
        assert browser.post("/account", b"do=end-all", Content_Type=FORM).status == 503
        assert browser.get("/").status == 200
        signed_out = browser.post("/logout", b"", Content_Type=FORM)
        assert signed_out.headers["location"] == "/login"
        assert browser.get("/login").status == 200
        assert browser.get("/").headers["location"] == "/login"
    halt.wait_printed(line)
    assert halt.printed.count(line) == 1

"""A Halt for which no model is set up: its page, its refusals, and the first model that appears."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from halt.connected.service import ConnectedProviders
from halt.testing.fake_openai import FakeOpenAI
from tests.support.connected import connected_at, details, removed_at_the_end
from tests.support.halt_server import HaltServer, StartHalt, new_id
from tests.support.model_servers import LOCKED, OFFERED, listing, models
from tests.support.no_demo import halt_without_model, without_demo
from tests.support.page_requests import PAGE_HEADERS
from tests.support.ports import free_port
from tests.support.raw_server import RawServer
from tests.support.waiting import SERVER_TIMEOUT, wait_until

HELLO = [{"role": "user", "content": "Hello"}]
EMPTY = "No model is set up yet."


@pytest.fixture(scope="module")
def halt() -> Iterator[HaltServer]:
    """A Halt of one person, without a model, which looks for none."""
    with halt_without_model() as server:
        yield server


@pytest.fixture
def connected(halt: HaltServer) -> Iterator[ConnectedProviders]:
    """The server's connected providers: none at the beginning and at the end."""
    with removed_at_the_end(halt.data_folder) as service:
        yield service


def page_when(halt: HaltServer, words: str) -> str:
    """The page when it has these words: on a busy machine the first probes find no server yet."""
    texts: list[str] = []

    def has_words() -> bool:
        texts.append(page(halt))
        return words in texts[-1]

    wait_until(has_words, SERVER_TIMEOUT)
    return texts[-1]


def page(halt: HaltServer, path: str = "/") -> str:
    """A page's text, without the escapes."""
    return html.unescape(halt.client().get(path).body.decode())


def offered(halt: HaltServer) -> list[str]:
    """The values of the options in the picker."""
    return re.findall(r'<option value="([^"]+)"', page(halt, "/models"))


def rows(halt: HaltServer) -> list[int]:
    """The numbers of conversations and of messages in the database."""
    with sqlite3.connect(halt.data_folder / "halt.db") as database:
        tables = ("conversations", "messages")
        return [database.execute(f"select count(*) from {name}").fetchone()[0] for name in tables]  # noqa: S608


def test_page_says_that_no_model_is_set_up_and_what_there_is(halt: HaltServer) -> None:
    """The page offers to connect a model, and has the words of why the demo model does not run."""
    text = page(halt)
    assert EMPTY in text
    assert 'href="/settings/models/add/compatible"' in text
    assert "The demo model cannot be loaded here, ImportError: this engine is" in text
    assert "Look again" not in text  # HALT_DISCOVER=0
    assert '<option value="">No model</option>' in text


@pytest.mark.parametrize("action", ["messages", "regenerate"])
def test_message_without_a_model_is_refused_before_it_is_saved(
    halt: HaltServer, action: str
) -> None:
    """A message, or another answer, is refused as `no_model`, and nothing is saved."""
    before = rows(halt)
    client = halt.client()
    client.get("/")
    body = urlencode({"prompt": "Hello", "model": "any/model"}).encode()
    path = f"/c/{new_id()}"
    answer = client.request("POST", f"{path}/{action}", body, PAGE_HEADERS)
    assert answer.status == 503
    assert 'data-code="no_model"' in answer.body.decode()
    assert client.get(path).status == 404
    assert rows(halt) == before


def test_connected_provider_replaces_the_note_and_answers(
    halt: HaltServer, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """The next list has its models and empties the note. Once it is removed, both are as before."""
    connected.add(details(fake.base_url, models=("count?n=2",)))
    wait_until(lambda: offered(halt) == ["second/count?n=2"], SERVER_TIMEOUT)
    answer = page(halt, "/models?empty=1")
    assert re.search(r'hx-target="#model-notice"[^>]*>\s*</hx-partial>', answer)
    assert EMPTY not in page(halt)
    assert "Default: second/count?n=2" in answer
    with halt.client().stream("POST", "/chat/stream", {"messages": HELLO}) as events:
        assert events.to_end().text == "0 1 "
    connected.remove("second")
    wait_until(lambda: offered(halt) == [], SERVER_TIMEOUT)
    assert EMPTY in page(halt, "/models")
    assert EMPTY in page(halt)


def test_those_who_may_not_connect_are_sent_to_an_administrator(start_halt: StartHalt) -> None:
    """A stranger reads that an administrator can connect a model, and gets no link to do it."""
    with without_demo() as environment:
        halt = start_halt(**{**environment, "HALT_DISCOVER": "0", "HALT_ALLOW_ANONYMOUS": "1"})
        text = page(halt)
        assert EMPTY in text
        assert "Ask an administrator of this Halt" in text
        assert "/settings/models" not in text


def test_server_that_needs_a_key_is_offered_until_it_is_connected(start_halt: StartHalt) -> None:
    """A found server that needs a key has a link to the form with its address."""
    with without_demo() as environment, RawServer(LOCKED) as server:
        halt = start_halt(**environment, HALT_DISCOVER=f"127.0.0.1:{server.port}")
        text = page_when(halt, "It needs a key.")
        assert EMPTY in text
        query = urlencode({"address": server.url}, safe="/:")
        assert f'href="/settings/models/add/compatible?{query}"' in text
        assert server.url in page(halt, f"/settings/models/add/compatible?{query}")
        assert f"{server.url.removesuffix('/v1')} needs a key" in page(halt, "/models")
        with connected_at(halt.data_folder) as service:
            service.add(details(server.url, models=("m",), key="sk-of-the-locked-server"))
        wait_until(lambda: EMPTY not in page(halt), SERVER_TIMEOUT)
        assert " needs a key" not in page(halt, "/models")


def test_looking_again_finds_a_server_that_was_skipped(start_halt: StartHalt) -> None:
    """After an answer that was no list an address is skipped, until a person looks again."""
    port = free_port()
    with without_demo() as environment:
        with RawServer(LOCKED, port=port):
            halt = start_halt(**environment, HALT_DISCOVER=f"127.0.0.1:{port}")
            answer = page(halt, "/models?look=1")
            assert "None with a model was found." in answer
        with RawServer(listing(models("m", owner="user")), port=port):
            wait_until(
                lambda: f'value="local-{port}/m"' in page(halt, "/models?look=1"), SERVER_TIMEOUT
            )
            assert EMPTY not in page(halt)


def test_found_server_without_a_model_is_named(start_halt: StartHalt) -> None:
    """A server that runs without a model is no model, and the page says which one it is."""
    with without_demo() as environment, RawServer(OFFERED["empty-ollama"]) as server:
        halt = start_halt(**environment, HALT_DISCOVER=f"127.0.0.1:{server.port}")
        text = page_when(halt, "has no model yet.")
        assert EMPTY in text
        assert f"127.0.0.1:{server.port} has no model yet." in re.sub(r"\s+", " ", text)


def test_halt_model_of_two_servers_is_named_at_the_start_and_in_the_picker(
    start_halt: StartHalt,
) -> None:
    """HALT_MODEL in the lists of two servers is not used: both places say what to set it to."""
    both = listing(models("m", owner="user"))
    with RawServer(both) as one, RawServer(both) as other:
        addresses = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        halt = start_halt(HALT_DISCOVER=addresses, HALT_MODEL="m")
        words = "HALT_MODEL='m' is in several lists: set it to local-"
        assert words in halt.wait_printed("Model server: .*\n")[0]
        assert words in page(halt, "/models")
        unique = start_halt(HALT_DISCOVER=addresses, HALT_MODEL=f"local-{one.port}/m")
        line = unique.wait_printed("Model server: .*\n")[0]
        assert "HALT_MODEL" not in line + page(unique, "/models")

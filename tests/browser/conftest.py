"""Fixtures of the browser tests: Chromium, and tabs that fail their test at any problem."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser

from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import SCENARIOS, numbers, pieces
from halt.testing.wire import Reply
from tests.browser.chat import PATIENCE, Chat
from tests.browser.launched import launched_browser
from tests.browser.list_tab import WIDE, ListTab
from tests.browser.network import Network
from tests.support.halt_server import HaltServer, settings
from tests.support.server_people import ServerPeople


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with launched_browser() as chromium:
        yield chromium


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario `stepwise?at=20,60&n=100`.

    After each number of tokens in `at` it is silent until the next release of its record.
    """

    def stepwise(reply: Reply, at: str = "", n: int = 100, key: str = "", piece: int = 4) -> None:
        """`n` numbers, or the text `key` in pieces."""
        tokens = pieces(reply.texts[key], piece) if key else list(numbers(n))
        start = 0
        for end in (*map(int, at.split(",")), len(tokens)):
            reply.tokens(tokens[start:end])
            if end < len(tokens):
                reply.hold()
                reply.record.released.clear()
            start = end
        reply.finish()

    monkeypatch.setitem(SCENARIOS, "stepwise", stepwise)


@pytest.fixture(scope="module")
def people_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt whose people have accounts."""
    server = HaltServer(settings(shared_fake, HALT_USERS=1))
    yield server
    server.close()


@pytest.fixture(scope="module")
def people(people_server: HaltServer) -> Iterator[ServerPeople]:
    """The people of that Halt."""
    with contextlib.closing(ServerPeople(people_server)) as people:
        yield people


OpenChat = Callable[..., Chat]


@pytest.fixture
def open_chat(browser: Browser) -> Iterator[OpenChat]:
    """Opens the page of a server in a session of its own, or in that of the tab `same`.

    Options are those of Playwright's contexts. At the end of the test every tab is checked: no
    error in the console, no failed script, no dialog, no request to another server.
    """
    open_chats: list[Chat] = []
    with contextlib.ExitStack() as stack:

        def open_one(
            server: HaltServer, fake: FakeOpenAI, same: Chat | None = None, **options: Any
        ) -> Chat:
            if same is None:
                context = browser.new_context(
                    viewport=options.pop("viewport", {"width": 1000, "height": 800}), **options
                )
                context.set_default_timeout(PATIENCE)
                stack.callback(context.close)
            else:
                context = same.context
            open_chats.append(Chat(context, server, fake))
            return open_chats[-1]

        yield open_one
        for chat in open_chats:
            chat.check()


@pytest.fixture
def chat(open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI) -> Chat:
    """A tab in a session of its own on the shared server."""
    return open_chat(halt, shared_fake)


@pytest.fixture
def network(halt: HaltServer) -> Iterator[Network]:
    """A network between the test's browser and the shared server."""
    with Network(halt) as network:
        yield network


@pytest.fixture
def tab(open_chat: OpenChat, chat: Chat) -> Callable[[], Chat]:
    """Opens another tab of the session of `chat`."""
    return lambda: open_chat(chat.server, chat.fake, same=chat)


@pytest.fixture
def list_tab(open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI) -> Iterator[ListTab]:
    """A tab on a wide screen; its running answers are stopped at the end of the test."""
    list_tab = ListTab(open_chat(halt, shared_fake, viewport=WIDE))
    yield list_tab
    list_tab.chat.context.request.post(f"{halt.url}/stop-all")


class OtherSite(BaseHTTPRequestHandler):
    """A web site that is not Halt."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "27")
        self.end_headers()
        self.wfile.write(b"<!doctype html><p>Elsewhere")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_site() -> Iterator[int]:
    """The port of another web site, which has two origins: 127.0.0.1 and localhost."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherSite) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()

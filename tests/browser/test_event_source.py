"""GET /stream with the browser's EventSource and a page that never closes it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, new_id, request_record

#: Opens an EventSource; `window` has its events, the number of its errors, and itself.
OPEN = """address => {
    window.events = [];
    window.errors = 0;
    window.source = new EventSource(address);
    window.source.onerror = () => window.errors++;
    window.source.onmessage = event => window.events.push(JSON.parse(event.data));
}"""
ENDED = "() => window.source.readyState === EventSource.CLOSED"
EVENTS = "() => window.events"


class Cable:
    """A proxy before a server; `cut` errors all its connections."""

    def __init__(self, halt: HaltServer) -> None:
        self._server = (halt.host, halt.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()  # protects the ends
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        with self._lock:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(5)
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            with self._lock:
                self._ends += [near, far]
            for ends in ((near, far), (far, near)):
                thread = threading.Thread(target=self._carry, args=ends, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(halt: HaltServer) -> Iterator[Cable]:
    """A proxy before the shared server."""
    cable = Cable(halt)
    yield cable
    cable.close()


@pytest.fixture
def page(browser: Browser, cable: Cable) -> Iterator[Page]:
    """A page of the origin of `cable`."""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(cable.url)
        yield page


def times_asked(fake: FakeOpenAI, prompt_text: str) -> int:
    return len([record for record in fake.requests if prompt_text in str(record.body)])


def test_event_source_closes_after_the_end(page: Page, shared_fake: FakeOpenAI) -> None:
    """An EventSource that reconnects after the end is refused, and the prompt has run once."""
    prompt_text = new_id()
    page.evaluate(OPEN, f"/stream?model=echo&prompt={prompt_text}")
    page.wait_for_function(ENDED)
    events = page.evaluate(EVENTS)
    assert "".join(event["content"] for event in events) == prompt_text
    assert [event.get("done", False) for event in events][-1:] == [True]
    assert len([event for event in events if event.get("done")]) == 1
    assert times_asked(shared_fake, prompt_text) == 1


@pytest.mark.parametrize(
    "model",
    ["silent_first_token?n=8", "stall?n=3&rest=5"],
    ids=["before the first token", "after three tokens"],
)
def test_event_source_with_a_lost_connection_loses_no_token(
    page: Page, cable: Cable, shared_fake: FakeOpenAI, model: str
) -> None:
    """An EventSource that loses its connection resumes its run without losing a token."""
    prompt_text = new_id()
    address = f"/stream?model={quote(model)}&prompt={prompt_text}&on_disconnect=continue"
    page.evaluate(OPEN, address)
    record = request_record(shared_fake, prompt_text)
    first_text = "2 " if model.startswith("stall") else ""  # "": the opening, which names the run
    page.wait_for_function(
        "text => window.events.length && window.events.map(e => e.content).join('').includes(text)",
        arg=first_text,
    )
    cable.cut()
    page.wait_for_function("() => window.errors > 0")
    record.release()
    page.wait_for_function(ENDED)
    events = page.evaluate(EVENTS)
    assert "".join(event["content"] for event in events) == "".join(f"{n} " for n in range(8))
    assert events[-1]["type"] == "done"
    assert times_asked(shared_fake, prompt_text) == 1

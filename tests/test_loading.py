"""A model that is being loaded: a message waits for it, within a limit, and Stop ends the wait."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from app import create_app
from halt.config import load
from halt.embedded import Embedded
from tests.conftest import StartHalt
from tests.fake_openai import FakeOpenAI
from tests.test_doctor_remedies import Request, good_list, served

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
#: How servers say that they load a model.
LOADING = [
    {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}},
    {"error": {"message": "the model is loading, please retry", "code": "model_loading"}},
]


class Loader:
    """A server whose model is loaded when `ready` is set; counts what it was asked before."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.asked = threading.Semaphore(0)
        self.value: object = LOADING[0]

    def __call__(self, request: Request) -> None:
        if self.ready.is_set():
            request.stream()
        else:
            request.reply(self.value, 503)
            self.asked.release()


def test_a_message_waits_for_a_model_that_is_loaded(start_halt: StartHalt) -> None:
    """It is asked again as often as need be, without HALT_RETRIES; Stop ends the wait at once."""
    loader = Loader()
    with served(good_list, loader) as url:
        client = start_halt(url, HALT_RETRIES=0).client()
        for loader.value in LOADING:
            loader.ready.clear()
            stream = client.stream("POST", "/chat/stream", HELLO)
            for _ in range(2):
                assert loader.asked.acquire(timeout=20)
            loader.ready.set()
            assert stream.to_end().terminal["type"] == "done"
            assert stream.text.startswith("1 2 3 ")
        loader.ready.clear()
        stream = client.stream("POST", "/chat/stream", HELLO)
        for _ in range(3):  # the next pause is a second
            assert loader.asked.acquire(timeout=20)
        assert client.stop(stream.id).json["status"] == "stopped"
        assert stream.to_end().terminal["type"] == "cancelled"
        assert not loader.asked.acquire(blocking=False)


def test_the_wait_has_a_limit(start_halt: StartHalt) -> None:
    """HALT_FIRST_BYTE_TIMEOUT; then the error says that the model is being loaded still."""
    with served(good_list, Loader()) as url:
        server = start_halt(url, HALT_FIRST_BYTE_TIMEOUT=0.6)
        stream = server.client().stream("POST", "/chat/stream", HELLO).to_end()
    assert stream.terminal["error"]["code"] == "model_loading"
    assert "Loading model" in stream.terminal["error"]["message"]
    assert "HALT_FIRST_BYTE_TIMEOUT" in stream.terminal["error"]["message"]


# --- the demo model -------------------------------------------------------------------------------


@pytest.fixture
def reserved() -> Iterator[Embedded]:
    """Where the demo model will listen, and does not yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield Embedded(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", "a-key-for-tests")


def test_the_page_says_that_the_demo_model_is_being_loaded(
    shared_fake: FakeOpenAI, reserved: Embedded, tmp_path: object
) -> None:
    """Until it answers the page asks again by itself; then it says what the demo model is."""
    for url, loading in ((reserved.base_url, True), (shared_fake.base_url, False)):
        environ = {
            "HALT_EMBEDDED_URL": url,
            "HALT_EMBEDDED_KEY": "fake-key-of-tests",
            "HALT_EMBEDDED_MODEL": "echo",
            "HALT_DATA": str(tmp_path),
        }
        application = create_app(load(environ))
        client = application.test_client()
        for path in ("/", "/demo"):
            said = client.get(path).text
            assert ("The demo model is being loaded." in said) is loading
            assert ('hx-get="/demo"' in said) is loading
            assert ("its facts and code are unreliable" in said) is not loading
        application.extensions["halt"].upstream.close()

"""A model that is loading: a message waits for it, up to a limit, and a Stop ends the wait."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.core import opening
from halt.core.events import Cancelled, Done, Failed, Terminal, is_terminal
from halt.core.request import ChatRequest, Message
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.providers.embedded_model import EmbeddedModel
from halt.providers.factory import make_upstream
from halt.testing.fake_openai import FakeOpenAI
from halt.web.services import services
from tests.support.simple_model_server import ModelRequest, list_models, serving
from tests.support.waiting import WAIT_TIMEOUT

HELLO = ChatRequest([Message("user", "Hello")])
#: Errors of servers that are loading a model.
LOADING = [
    {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}},
    {"error": {"message": "the model is loading, please retry", "code": "model_loading"}},
]


class Loader:
    """A server whose model is loaded once `ready` is set; counts the requests before that."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.asked = threading.Semaphore(0)
        self.value: object = LOADING[0]

    def __call__(self, request: ModelRequest) -> None:
        if self.ready.is_set():
            request.stream()
        else:
            request.reply(self.value, 503)
            self.asked.release()


@contextlib.contextmanager
def demo_at(url: str, **settings: str) -> Iterator[GenerationService]:
    """The generations of a Halt whose demo model is at this address."""
    environ = {
        "HALT_EMBEDDED_URL": url,
        "HALT_EMBEDDED_KEY": "fake-key-of-tests",
        "HALT_EMBEDDED_MODEL": "echo",
        **settings,
    }
    config = load(environ)
    generations = GenerationService(config, make_upstream(config), StopRegistry())
    try:
        yield generations
    finally:
        generations.close()


def terminal_of(run: Run) -> Terminal:
    """Return the run's terminal event."""
    for events in run.follow(0, run.join()):
        if events and is_terminal(last_event := events[-1][1]):
            return last_event
    raise AssertionError("no end")


def test_message_waits_for_the_loading_demo_model_until_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message is sent again until the demo model has loaded, whatever HALT_RETRIES is.

    A Stop ends the wait.
    """
    loader = Loader()
    with serving(list_models, loader) as url, demo_at(url, HALT_RETRIES="0") as generations:
        for loader.value in LOADING:
            loader.ready.clear()
            run = generations.start(HELLO)
            for _ in range(2):
                assert loader.asked.acquire(timeout=WAIT_TIMEOUT)
            loader.ready.set()
            assert isinstance(terminal_of(run), Done)
            assert run.answer()[1].startswith("1 2 3 ")
        loader.ready.clear()
        monkeypatch.setattr(opening, "LOADING_PAUSE", 30.0)
        monkeypatch.setattr(opening, "LOADING_PAUSE_MAX", 30.0)
        run = generations.start(HELLO)
        assert loader.asked.acquire(timeout=WAIT_TIMEOUT)  # the next request is due in 30 s
        assert generations.stop(run.key).status == "stopped"
        assert isinstance(terminal_of(run), Cancelled)
        assert not loader.asked.acquire(blocking=False)


def test_wait_for_the_demo_model_ends_with_first_byte_timeout() -> None:
    """After HALT_FIRST_BYTE_TIMEOUT the error says that the model is still loading."""
    with (
        serving(list_models, Loader()) as url,
        demo_at(url, HALT_FIRST_BYTE_TIMEOUT="3") as generations,
    ):
        failed = terminal_of(generations.start(HELLO))
    assert isinstance(failed, Failed)
    assert failed.error.code == "model_loading"
    assert "Loading model" in failed.error.message
    assert "HALT_FIRST_BYTE_TIMEOUT" in failed.error.message


def test_other_loading_server_is_retried_as_for_any_fault() -> None:
    """A server other than the demo model gets HALT_RETRIES retries, then an error."""
    loader = Loader()
    with serving(list_models, loader) as url:
        config = load({"OPENAI_BASE_URL": url, "HALT_MODEL": "m", "HALT_RETRIES": "1"})
        generations = GenerationService(config, make_upstream(config), StopRegistry())
        failed = terminal_of(generations.start(HELLO))
        generations.close()
    assert isinstance(failed, Failed)
    assert failed.error.retryable
    assert "Loading model" in failed.error.message
    assert loader.asked.acquire(blocking=False)
    assert loader.asked.acquire(blocking=False)
    assert not loader.asked.acquire(blocking=False)


# --- the demo model -------------------------------------------------------------------------------


@pytest.fixture
def reserved() -> Iterator[EmbeddedModel]:
    """The address at which the demo model will listen, and does not yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield EmbeddedModel(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", "a-key-for-tests")


def test_page_says_that_the_demo_model_is_loading(
    shared_fake: FakeOpenAI, reserved: EmbeddedModel, tmp_path: object
) -> None:
    """The page says that the demo model is loading and polls until it answers; then it describes
    the model.
    """
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
            html = client.get(path).text
            assert ("The demo model is loading." in html) is loading
            assert ('hx-get="/demo"' in html) is loading
            assert ("its facts and code are unreliable" in html) is not loading
        services(application).generations.upstream.close()

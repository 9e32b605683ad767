"""The programs in `tests/examples`, run against a real Halt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from openai import OpenAI
from websockets.sync.client import connect

from halt.testing.fake_openai import FakeOpenAI
from tests.examples import openai_client, python_requests, websocket
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.waiting import WAIT_TIMEOUT

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """Run an example as a user would; return its output."""
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def read_until(pieces: Iterator[str], text: str) -> str:
    """Read pieces until they contain `text`; return all that was read."""
    received = ""
    while text not in received:
        received += next(pieces)
    return received


def test_requests_example_prints_a_whole_answer(halt: HaltServer) -> None:
    """The script prints an answer from its first to its last word."""
    assert run("python_requests.py", halt.url, "as it was said") == "as it was said\n"


def test_requests_example_stops_by_the_id_header(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A Stop with the ID of the header keeps the text so far and closes the upstream."""
    prompt = f"/fake stall?n=3 {new_id()}"
    with python_requests.ask(halt.url, prompt) as response:
        text = python_requests.pieces(response)
        received = read_until(text, "2 ")
        receipt = python_requests.stop(halt.url, response.headers["X-Stream-Id"])
        assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
        assert received + "".join(text) == "0 1 2 "
    assert request_record(shared_fake, prompt).closed.wait(WAIT_TIMEOUT)


def test_requests_example_raises_for_a_broken_answer(halt: HaltServer) -> None:
    """An answer that fails after its first text is an exception, never a short text."""
    with (
        python_requests.ask(halt.url, "/fake drop?n=3") as response,
        pytest.raises(requests.exceptions.ChunkedEncodingError),
    ):
        list(python_requests.pieces(response))


def test_openai_example_prints_a_whole_answer(halt: HaltServer) -> None:
    """The script prints an answer."""
    assert run("openai_client.py", halt.url, "echo", "as it was said") == "as it was said\n"


def test_openai_example_ends_after_a_stop(halt: HaltServer, shared_fake: FakeOpenAI) -> None:
    """A stream with a chosen ID is stopped by another client, and the script's loop ends."""
    prompt, stream_id = f"/fake stall?n=3 {new_id()}", new_id()
    with OpenAI(base_url=f"{halt.url}/v1", api_key="any") as llm:
        text = openai_client.pieces(llm, "echo", prompt, stream_id)
        received = read_until(text, "2 ")
        receipt = openai_client.stop(halt.url, stream_id)
        assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
        assert received + "".join(text) == "0 1 2 "
    assert request_record(shared_fake, prompt).closed.wait(WAIT_TIMEOUT)


def test_websocket_example_prints_several_answers(halt: HaltServer) -> None:
    """The script prints two answers of one socket, each with its text and its end."""
    printed = run("websocket.py", halt.url.replace("http", "ws") + "/ws", "first", "second")
    assert sorted(printed.splitlines()) == [
        "first | done",
        "first | first",
        "second | done",
        "second | second",
    ]


def test_websocket_example_stops_one_of_two_answers(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """The example stops one of two streams on a socket, and the other ends normally."""
    prompt = f"/fake stall?n=1 {new_id()}"
    with connect(halt.url.replace("http", "ws") + "/ws") as socket:
        stalled = websocket.start(socket, prompt)
        events = websocket.events(socket, stalled)
        assert next(events) == (stalled, {"type": "content", "content": "0 "})
        second = websocket.start(socket, "hello")
        websocket.stop(socket, stalled)
        end_types = {
            i: e["type"] for i, e in websocket.events(socket, stalled, second) if e.get("done")
        }
        assert end_types == {stalled: "cancelled", second: "done"}
    assert request_record(shared_fake, prompt).closed.wait(WAIT_TIMEOUT)

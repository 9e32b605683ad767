"""Pages of other origins (CORS) in a real browser, which enforces the headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import StartHalt

#: Starts a stream, waits for its second word, and presses Stop by the ID of the response's header.
STREAM_AND_STOP = """async base => {
    const answer = await fetch(`${base}/chat/stream`, {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify({messages: [{role: "user", content: "Hello"}], model: "stall?n=2"}),
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (!text.includes('1 "')) {
        const {value, done} = await reader.read();
        if (done) throw new Error(text);
        text += value;
    }
    const id = answer.headers.get("X-Stream-Id");
    const stopped = await fetch(`${base}/stop/${id}`, {method: "POST"});
    return (await stopped.json()).status;
}"""
EVENT_SOURCE = """base => new Promise((resolve, reject) => {
    const source = new EventSource(`${base}/stream?prompt=Hello&model=count%3Fn%3D2`);
    let text = "";
    source.onmessage = event => {
        const data = JSON.parse(event.data);
        text += data.content;
        if (data.done) { source.close(); resolve(text); }
    };
    source.onerror = () => { source.close(); reject(new Error("refused")); };
})"""
OUTCOME = """([url, options]) =>
    fetch(url, options).then(answer => answer.status, fault => fault.name)"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with contextlib.closing(browser.new_context()) as context:
        yield context.new_page()


def test_listed_origin_streams_and_stops_and_others_get_none(
    page: Page, other_site: int, fake: FakeOpenAI, start_halt: StartHalt
) -> None:
    """A listed origin can stream, stop and use EventSource, without cookies; others get nothing."""
    halt = start_halt(fake, HALT_CORS_ORIGINS=f"http://127.0.0.1:{other_site}")
    page.goto(f"http://127.0.0.1:{other_site}/")
    assert page.evaluate(STREAM_AND_STOP, halt.url) == "stopped"
    assert page.evaluate(EVENT_SOURCE, halt.url) == "0 1 "
    health = f"{halt.url}/healthz"
    assert page.evaluate(OUTCOME, [health, {}]) == 200
    assert page.evaluate(OUTCOME, [health, {"credentials": "include"}]) == "TypeError"
    assert page.evaluate(OUTCOME, [f"{halt.url}/models", {}]) == "TypeError"
    page.goto(f"http://localhost:{other_site}/")
    assert page.evaluate(OUTCOME, [health, {}]) == "TypeError"

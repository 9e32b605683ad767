"""The browser examples in `tests/examples`, in a real browser, on Halt's origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import PATIENCE
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.waiting import WAIT_TIMEOUT

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def page(browser: Browser, halt: HaltServer) -> Iterator[Page]:
    """A page of Halt's origin, which has the examples under /examples/."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)

    def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        route.fulfill(path=EXAMPLES / name) if name else route.fulfill(body="<!doctype html>")

    context.route(f"{halt.url}/examples/*", serve)
    yield context.new_page()
    context.close()


def test_fetch_example_yields_events_with_the_terminal_one_last(
    page: Page, halt: HaltServer
) -> None:
    """The fetch example yields every event as it comes, the terminal one last."""
    page.goto(f"{halt.url}/examples/")
    page.add_script_tag(url="fetch_reader.js")
    events = page.evaluate(
        """async () => {
          const events = [];
          const messages = [{ role: "user", content: "some words to repeat" }];
          for await (const event of ask({ messages })) events.push(event);
          return events;
        }"""
    )
    assert "".join(event["content"] for event in events) == "some words to repeat"
    assert [event["type"] for event in events][-1] == "done"


def test_fetch_example_stops_with_a_receipt_of_the_close(
    page: Page, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Stop in mid-answer: the reader gets `cancelled`, and the receipt says "closed"."""
    prompt_text = f"/fake stall?n=3 {new_id()}"
    page.goto(f"{halt.url}/examples/")
    page.add_script_tag(url="fetch_reader.js")
    receipt, last = page.evaluate(
        """async (promptText) => {
          const id = "page-" + crypto.randomUUID();
          let receipt, last;
          for await (const event of ask({ id, messages: [{ role: "user", content: promptText }] })) {
            receipt ??= await stop(id);
            last = event;
          }
          return [receipt, last];
        }""",
        prompt_text,
    )
    assert (receipt["status"], receipt["upstream"]) == ("stopped", "closed")
    assert last["type"] == "cancelled"
    assert request_record(shared_fake, prompt_text).closed.wait(WAIT_TIMEOUT)


def test_fetch_example_raises_the_error_message(page: Page, halt: HaltServer) -> None:
    """The fetch example raises a refusal as an exception with Halt's message."""
    page.goto(f"{halt.url}/examples/")
    page.add_script_tag(url="fetch_reader.js")
    message = page.evaluate("ask({ messages: [] }).next().catch((error) => error.message)")
    assert "messages" in message


def test_event_source_example_shows_an_answer(page: Page, halt: HaltServer) -> None:
    """The EventSource example shows an answer to its end."""
    page.goto(f"{halt.url}/examples/eventsource.html")
    page.fill("#prompt", "some words to repeat")
    page.click("text=Ask")
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#answer")).to_have_text("some words to repeat")


def test_event_source_example_stops_and_keeps_its_text(
    page: Page, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Stop in mid-answer keeps the text, shows "cancelled" and closes the upstream."""
    prompt_text = f"/fake stall?n=3 {new_id()}"
    page.goto(f"{halt.url}/examples/eventsource.html")
    page.fill("#prompt", prompt_text)
    page.click("text=Ask")
    expect(page.locator("#answer")).to_have_text("0 1 2 ")
    page.click("#stop")
    expect(page.locator("#state")).to_have_text("cancelled")
    expect(page.locator("#answer")).to_have_text("0 1 2 ")
    assert request_record(shared_fake, prompt_text).closed.wait(WAIT_TIMEOUT)

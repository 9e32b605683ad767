"""The JavaScript examples in the documents run as they are, in a real browser, against a real Halt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from halt.testing.fake_openai import FakeOpenAI
from tests.support.documents import Example, examples
from tests.support.halt_server import StartHalt

#: Code before and after an example, by document and heading.
AROUND = {
    ("api.md", "EventSource"): (
        'let text = ""; const show = (more) => (text += more);',
        """
        while (source.readyState !== EventSource.CLOSED)
          await new Promise((resolve) => setTimeout(resolve, 20));
        return text;
        """,
    ),
    ("api.md", "Pages of other origins (CORS)"): (
        'const token = "open-sesame";',
        """
        const text = await answer.text();
        return id && text.includes("Hello") && text.endsWith("data: [DONE]\\n\\n") ? "read" : text;
        """,
    ),
}
#: The result of each example with that code.
EXPECTED = {
    ("api.md", "EventSource"): "Count to ten.",
    ("api.md", "Pages of other origins (CORS)"): "read",
}
#: Examples for pages of another origin than Halt's.
FOREIGN = {("api.md", "Pages of other origins (CORS)")}

SCRIPTS = [example for example in examples() if example.language == "js"]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser without cookies."""
    with contextlib.closing(browser.new_context()) as context:
        yield context.new_page()


@pytest.mark.parametrize("example", SCRIPTS, ids=lambda example: str(example.heading))
def test_example_runs_as_documented(
    example: Example, page: Page, start_halt: StartHalt, shared_fake: FakeOpenAI, other_site: int
) -> None:
    """A JavaScript example of the documents gives the expected result."""
    key = (example.document, example.heading)
    before, after = AROUND[key]
    if key in FOREIGN:
        site = f"http://127.0.0.1:{other_site}"
        halt = start_halt(shared_fake, HALT_CORS_ORIGINS=site, HALT_TOKEN="open-sesame")
        page.goto(f"{site}/")
    else:
        halt = start_halt(shared_fake)
        page.route("**/empty", lambda route: route.fulfill(body="<!doctype html>"))
        page.goto(f"{halt.url}/empty")
    code = example.code.replace("https://halt.example", halt.url)
    assert page.evaluate(f"async () => {{ {before}\n{code}\n{after} }}") == EXPECTED[key]

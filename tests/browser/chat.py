"""A page of Halt in a browser's tab, as tests use it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Dialog,
    FilePayload,
    Locator,
    Page,
    expect,
)

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.browser.contrasts import CONTRASTS
from tests.support.export_files import export_file
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PATIENCE = 30_000  # milliseconds that a test waits for a change of the page

#: Pattern of a browser's console messages for responses with an error and lost connections.
LOAD_ERRORS = r"Failed to load resource|net::ERR_"

#: The title of the note at an answer that the user has stopped.
STOPPED_BY_USER = re.compile(r"^Stopped by you( after \d[\d,]* tokens?| before any text)?\.$")

#: Pastes a text into a field.
PASTE = """(field, text) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData('text/plain', text);
  const event = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true });
  field.dispatchEvent(event);
}"""

#: Whether the script that follows a finger has been loaded, which is after the page itself.
SWIPE_IS_LOADED = """() => performance.getEntriesByType('resource')
  .some(({ name }) => name.endsWith('/on_demand/swipe.js'))"""


def numbers(n: int) -> str:
    """The first `n` numbers, as a page shows the answer of the scenario `count`."""
    return " ".join(str(i) for i in range(n))


def wait_no_open_streams(server: HaltServer) -> None:
    """Wait until the server has no open stream, and so all its places are free."""
    wait_until(lambda: not server.client().get("/healthz").json["open_streams"], SERVER_TIMEOUT)


def import_conversations(context: BrowserContext, url: str, *talks: dict[str, Any]) -> None:
    """Import conversations into the session of these tabs, on the server with this URL."""
    file: FilePayload = {
        "name": "a.json",
        "mimeType": "application/json",
        "buffer": export_file(*talks),
    }
    assert context.request.post(f"{url}/import", multipart={"file": file}).ok


def send_files(context: BrowserContext, url: str, prompt: str, given: Mapping[str, bytes]) -> str:
    """Send a prompt with these files, by their names; returns the path of its conversation."""
    fields = [("prompt", prompt)]
    for name, data in given.items():
        uploaded = context.request.post(f"{url}/files?{urlencode({'name': name})}", data=data)
        assert uploaded.status == 201, uploaded.text()
        fields += [("file", uploaded.json()["id"]), ("file_name", name)]
    path = f"/c/{secrets.token_urlsafe(16)}"
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode(fields)
    assert context.request.post(f"{url}{path}/messages", data=body, headers=kind).ok
    return path


class Chat:
    """A tab with the page.

    `problems` has the console's errors and warnings, script errors, dialogs and requests to other
    servers. `check` fails for each that does not match the pattern `allowed_problems`.
    """

    def __init__(self, context: BrowserContext, server: HaltServer, fake: FakeOpenAI) -> None:
        self.context = context
        self.server = server
        self.fake = fake
        self.problems: list[str] = []
        self.allowed_problems = ""
        self.last_prompt = ""
        self.page: Page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url))
        self.page.goto(server.url)
        touch = self.page.evaluate("matchMedia('(pointer: coarse)').matches")
        self.send_keys = "Control+Enter" if touch else "Enter"

    # --- actions ----------------------------------------------------------------------------------

    def submit(self, text: str) -> None:
        """Type a message and press the keys that send it."""
        self.page.wait_for_load_state()  # also after a link
        self.prompt.fill(text)
        self.prompt.press(self.send_keys)

    def ask(self, scenario: str, words: str = "") -> str:
        """Send a prompt that selects a scenario of the fake; returns the prompt, which is unique."""
        self.last_prompt = f"/fake {scenario} {words or new_id()}"
        self.submit(self.last_prompt)
        return self.last_prompt

    def ask_for(self, text: str, **pace: Any) -> str:
        """Send a prompt that the fake answers with `text`, at this pace."""
        key = new_id()
        self.fake.texts[key] = text
        return self.ask("text?" + "&".join(f"{k}={v}" for k, v in {"key": key, **pace}.items()))

    def ask_for_paragraphs(self, text: str, silences: Iterable[int]) -> None:
        """Send a prompt that the fake answers with `text`; silent before each of these paragraphs.

        Each silence lasts until the next `release`. Needs the fixture `stepwise`.
        """
        piece, key = 8, new_id()
        self.fake.texts[key] = text
        starts = [len("\n\n".join(text.split("\n\n")[:n])) // piece for n in silences]
        positions = ",".join(map(str, starts))
        self.ask(f"stepwise?key={key}&piece={piece}&gap_ms=2&at={positions}")

    def reload(self) -> None:
        """Reload the page, as the browser's button does."""
        self.page.reload()

    def import_conversations(self, *talks: dict[str, Any]) -> None:
        """Import these conversations into the session. The page does not know them yet."""
        import_conversations(self.context, self.server.url, *talks)

    # --- state ------------------------------------------------------------------------------------

    @property
    def prompt(self) -> Locator:
        """The message field."""
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def send(self) -> Locator:
        """The Send button."""
        return self.page.get_by_role("button", name="Send", exact=True)

    @property
    def stop(self) -> Locator:
        """The Stop button."""
        return self.page.get_by_role("button", name="Stop", exact=True)

    @property
    def answer(self) -> Locator:
        """The last answer; none while a message is sent, or a wait could see the one before it."""
        return self.page.locator("body:not(.sending) .exchange:last-child .answer")

    @property
    def text(self) -> Locator:
        """The text of the last answer."""
        return self.answer.locator("> .text")

    def open_settings(self) -> Locator:
        """Open the settings of this chat by the menu in the head; return the dialog."""
        self.page.get_by_role("button", name="More", exact=True).click()
        self.page.get_by_role("button", name="Chat settings", exact=True).click()
        dialog = self.page.get_by_role("dialog", name="Chat settings")
        expect(dialog).to_be_visible()
        return dialog

    def open_display(self) -> Locator:
        """Open the settings of the display by the menu in the rail; return the dialog."""
        if (opener := self.page.get_by_role("button", name="Show the chat list")).is_visible():
            opener.click()
        self.page.get_by_role("button", name="Display, archive, export and import").click()
        self.page.get_by_role("button", name="Display", exact=True).click()
        dialog = self.page.get_by_role("dialog", name="Display")
        expect(dialog).to_be_visible()
        return dialog

    def button(self, name: str) -> Locator:
        """A button of the last answer."""
        return self.answer.get_by_role("button", name=name, exact=True)

    def answer_text(self) -> str:
        """The text of the last answer as it is now."""
        return re.sub(r"\s+", " ", self.text.text_content() or "").strip()

    def wait_style(self, name: str) -> None:
        """Wait until a style sheet is there that the page loads when it needs it."""
        self.page.wait_for_function(
            """name => [...document.styleSheets]
              .some(({ href, cssRules }) => href?.match(`[/+]${name}[+.]`) && cssRules.length)""",
            arg=name,
        )

    def wait_text(self, text: str) -> None:
        """Wait until the last answer contains this text."""
        expect(self.text).to_contain_text(text)

    def wait_state(self, state: str) -> None:
        """Wait until the last answer is in this state."""
        expect(self.answer).to_have_attribute("data-state", state)

    def exchange_count(self) -> int:
        """The number of prompts with their answers on the page."""
        return self.page.locator(".exchange").count()

    def contrasts(self) -> dict[str, float]:
        """The contrast of each visible text with its background."""
        contrasts: dict[str, float] = self.page.evaluate(CONTRASTS)
        return contrasts

    def pixels_above(self) -> float:
        """The number of pixels of the page above the visible part."""
        return float(self.page.evaluate("document.scrollingElement.scrollTop"))

    def pixels_below(self) -> float:
        """The number of pixels of the page below the visible part, when a frame is drawn."""
        return float(
            self.page.evaluate(
                """() => new Promise(done => requestAnimationFrame(() => {
                  // It is called after the scripts of the frame, before the frame is drawn.
                  new ResizeObserver((_, observer) => {
                    observer.disconnect();
                    const page = document.scrollingElement;
                    done(page.scrollHeight - page.scrollTop - page.clientHeight);
                  }).observe(document.body);
                }))"""
            )
        )

    def record(self, nth: int = 0) -> Record:
        """The nth request to the fake for the last prompt, awaited."""
        return request_record(self.fake, self.last_prompt, nth)

    def release(self) -> None:
        """End the silence of the answer to the last prompt (`hold=N`, `stall`, ...)."""
        self.record().release()

    def frames(self, count: int = 2) -> None:
        """Wait until the page has drawn `count` frames."""
        self.page.evaluate(
            """count => new Promise(done => {
              const next = () => count-- > 0 ? requestAnimationFrame(next) : done();
              next();
            })""",
            count,
        )

    # --- problems ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Fail if there was a problem that the test does not allow."""
        allowed = self.allowed_problems
        problems = [text for text in self.problems if not (allowed and re.search(allowed, text))]
        assert not problems, problems

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"console {message.type}: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, url: str) -> None:
        if not url.startswith((self.server.url + "/", "data:", "blob:")):
            self.problems.append(f"request to another server: {url}")

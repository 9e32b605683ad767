"""The page in the words of the person who uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Locator, Page, expect

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.support.halt_server import HaltServer, eventually, new_id, request_record

PATIENCE = 30_000  # milliseconds after which something on the page is not going to happen

#: What a browser says in its console when a server or the network is away.
AWAY = r"Failed to load resource|net::ERR_"

#: Each visible element that has text of its own, and its contrast: what the eye needs to read it.
CONTRASTS = """() => {
  const parse = color => {
    const canvas = parse.canvas ??= new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r, g, b].map((c, i) => c * a + [R, G, B][i] * (1 - a));
  const ground = e => {
    const above = e.parentElement ? ground(e.parentElement) : parse('Canvas').slice(0, 3);
    return over(parse(getComputedStyle(e).backgroundColor), above);
  };
  const luminance = rgb => rgb.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (e, pseudo) => {
    const below = ground(e), ink = over(parse(getComputedStyle(e, pseudo).color), below);
    const [light, dark] = [luminance(below), luminance(ink)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const name = e => `${e.tagName.toLowerCase()}#${e.id}.${e.className}: ${e.textContent.trim().slice(0, 20)}`;
  const found = {};
  for (const e of document.body.querySelectorAll('*')) {
    const text = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!e.checkVisibility() || e.matches('.hidden, .skip')) continue;
    if (text) found[name(e)] = contrast(e);
    if (e.matches(':placeholder-shown')) found[name(e) + ' placeholder'] = contrast(e, '::placeholder');
  }
  return found;
}"""


def numbers(n: int) -> str:
    """What `count` says, as a page shows it."""
    return " ".join(str(i) for i in range(n))


def wait_no_open_streams(server: HaltServer) -> None:
    """Wait until the server has all its places for streams again."""
    eventually(lambda: not server.client().get("/healthz").json["open_streams"])


class Chat:
    """One tab. `trouble` gathers what must never happen; `forgives` is a pattern for exceptions."""

    def __init__(self, context: BrowserContext, server: HaltServer, fake: FakeOpenAI) -> None:
        self.context = context
        self.server = server
        self.fake = fake
        self.trouble: list[str] = []
        self.forgives = ""
        self.said = ""
        self.page: Page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.trouble.append(f"script error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url))
        self.page.goto(server.url)
        touch = self.page.evaluate("matchMedia('(pointer: coarse)').matches")
        self.sends = "Control+Enter" if touch else "Enter"  # the keys that send

    # --- doing ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Type and press the keys that send."""
        self.page.wait_for_load_state()  # behind a link that was followed too
        self.prompt.fill(text)
        self.prompt.press(self.sends)

    def ask(self, scenario: str, words: str = "") -> str:
        """Ask for a scenario of the fake; returns what was said, which is said only once."""
        self.said = f"/fake {scenario} {words or new_id()}"
        self.say(self.said)
        return self.said

    def ask_for(self, text: str, **pace: Any) -> str:
        """Let the model answer with `text`."""
        key = new_id()
        self.fake.texts[key] = text
        return self.ask("text?" + "&".join(f"{k}={v}" for k, v in {"key": key, **pace}.items()))

    def ask_for_paragraphs(self, text: str, silences: Iterable[int]) -> None:
        """Let the model answer with `text`, silent at the start of each of these paragraphs.

        Each silence lasts until the next `release`. Needs the fixture `stepwise`.
        """
        piece, key = 8, new_id()
        self.fake.texts[key] = text
        starts = [len("\n\n".join(text.split("\n\n")[:n])) // piece for n in silences]
        at = ",".join(map(str, starts))
        self.ask(f"stepwise?key={key}&piece={piece}&gap_ms=2&at={at}")

    def reload(self) -> None:
        """Press the browser's own button."""
        self.page.reload()

    # --- seeing -----------------------------------------------------------------------------------

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
        """The last answer."""
        return self.page.locator(".exchange:last-child .answer")

    @property
    def text(self) -> Locator:
        """The text of the last answer."""
        return self.answer.locator("> .text")

    def button(self, name: str) -> Locator:
        """A button of the last answer."""
        return self.answer.get_by_role("button", name=name, exact=True)

    def shown(self) -> str:
        """The text of the last answer as it is now."""
        return re.sub(r"\s+", " ", self.text.text_content() or "").strip()

    def wait_text(self, text: str) -> None:
        """Wait until the last answer holds this text."""
        expect(self.text).to_contain_text(text)

    def wait_state(self, state: str) -> None:
        """Wait until the last answer is in this state."""
        expect(self.answer).to_have_attribute("data-state", state)

    def exchanges(self) -> int:
        """How many prompts with their answers are shown."""
        return self.page.locator(".exchange").count()

    def contrasts(self) -> dict[str, float]:
        """The contrast of each visible text with what is behind it."""
        found: dict[str, float] = self.page.evaluate(CONTRASTS)
        return found

    def scrolled(self) -> float:
        """How many pixels of the page are above what is seen."""
        return float(self.page.evaluate("document.scrollingElement.scrollTop"))

    def below(self) -> float:
        """How many pixels of the page are below what is seen, in a frame as it is drawn."""
        return float(
            self.page.evaluate(
                """() => new Promise(done => requestAnimationFrame(() => {
                  // Told when the frame's own scripts are through and before it is drawn.
                  new ResizeObserver((_, observer) => {
                    observer.disconnect();
                    const page = document.scrollingElement;
                    done(page.scrollHeight - page.scrollTop - page.clientHeight);
                  }).observe(document.body);
                }))"""
            )
        )

    def record(self, nth: int = 0) -> Record:
        """The nth request that the provider got for what was said last."""
        return request_record(self.fake, self.said, nth)

    def release(self) -> None:
        """Let the provider go on with the answer that a `hold=N` in the last prompt holds up."""
        self.record().release()

    def frames(self, count: int = 2) -> None:
        """Let the page draw so many frames."""
        self.page.evaluate(
            """count => new Promise(done => {
              const next = () => count-- > 0 ? requestAnimationFrame(next) : done();
              next();
            })""",
            count,
        )

    # --- watching for what must not happen --------------------------------------------------------

    def check(self) -> None:
        """Fail if there was trouble that the test does not forgive."""
        bad = [
            each for each in self.trouble if not (self.forgives and re.search(self.forgives, each))
        ]
        assert not bad, bad

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.trouble.append(f"console {message.type}: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, url: str) -> None:
        if not url.startswith((self.server.url + "/", "data:", "blob:")):
            self.trouble.append(f"request elsewhere: {url}")

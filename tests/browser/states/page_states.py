"""Every state of the page by its name, each with a function that brings a tab into it.

The means are real: a Halt in its own process, the shipped fake model server, a browser. Answers
that run are held by the fake until the visit ends.
"""

from __future__ import annotations

import contextlib
import mimetypes
import re
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from playwright.sync_api import Browser, BrowserContext, FilePayload, Locator, Page, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import (
    LOAD_ERRORS,
    PASTE,
    PATIENCE,
    SWIPE_IS_LOADED,
    Chat,
    import_conversations,
    send_files,
)
from tests.browser.model_picker import button, choose_several, wait_offered
from tests.browser.network import Network
from tests.browser.states import page_answers
from tests.browser.states.page_answers import SCENARIO, written_answers
from tests.support.export_files import exported_conversation
from tests.support.files import docx, image, pdf
from tests.support.halt_server import HaltServer, settings
from tests.support.model_servers import LOCKED
from tests.support.no_demo import without_demo
from tests.support.oidc_provider import OidcProvider
from tests.support.ports import free_port
from tests.support.raw_server import RawServer
from tests.support.server_people import ServerPeople
from tests.support.simple_model_server import serving
from tests.support.waiting import SERVER_TIMEOUT, wait_until

Width = Literal["desktop", "phone"]
WIDTHS: tuple[Width, ...] = ("desktop", "phone")
#: Playwright's options for a context of each width.
CONTEXTS: dict[Width, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
NETWORK_ERRORS = LOAD_ERRORS + "|Failed to fetch|network error"
TOKEN = "token-of-the-tests"
MODELS = ("qwen3-8b", "gemma-3-12b", "mistral-small", "llama-3.3-70b", "phi-4", "qwen3-coder-30b")
TEXT_MODEL = "mistral-7b"
DAY = 86_400.0
PHONE_AGENT = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)

#: Conversations of the list: title, age in days.
LISTED = (
    ("Draft: letter to the landlord", 0.01),
    ("Why does TCP_NODELAY matter?", 0.02),
    ("Bread with 75 % hydration", 1.0),
    ("SQL: last row of each group", 1.1),
    ("Regular expressions, once more and with feeling", 3.0),
    ("Summary of the meeting", 4.0),
    ("Notes on the cache", 40.0),
)


@dataclass
class Visit:
    """A tab on its way into a state, in a session of its own."""

    stage: Stage
    context: BrowserContext
    width: Width
    cleanup: contextlib.ExitStack
    chats: list[Chat] = field(default_factory=list)
    servers: set[HaltServer] = field(default_factory=set)

    def open(self, server: HaltServer | Network | None = None, *, listed: bool = True) -> Chat:
        """Open the page of a server; by default of the usual one, with conversations listed."""
        if listed and server is None:
            self.keep(*usual_conversations())
        target: Any = server or self.stage.halt  # a Network has what a tab uses: the URL
        self.servers.add(self.stage.halt if isinstance(server, Network) else target)
        chat = Chat(self.context, target, self.stage.fake)
        self.chats.append(chat)
        return chat

    def keep(self, *conversations: dict[str, Any]) -> None:
        """Import conversations into the session."""
        import_conversations(self.context, self.stage.halt.url, *conversations)

    def ask(self, prompt: str, state: str = "done") -> Chat:
        """Open the page and send a prompt; wait until its answer is in this state."""
        chat = self.open()
        send(chat, prompt, state)
        return chat

    def watch(self, prompt: str, text: str) -> Chat:
        """Open the page and send a prompt; wait until this text of its answer is there."""
        chat = self.ask(prompt, "running")
        chat.wait_text(text)
        return chat

    def show_list(self, chat: Chat) -> None:
        """Make the list of conversations visible, also on a phone."""
        button = chat.page.locator("#open-sidebar")
        if button.is_visible():
            button.click()
        expect(chat.page.locator("#sidebar")).to_be_in_viewport(ratio=0.9)

    def settle(self) -> None:
        """Wait until nothing moves: animations that end have ended, and the frame is drawn."""
        for chat in self.chats:
            chat.page.evaluate(
                """() => Promise.allSettled(document.getAnimations()
                  .filter(a => a.effect.getComputedTiming().endTime !== Infinity)
                  .map(a => a.finished))"""
            )

    def check(self) -> None:
        """Fail if a tab had a problem that its state does not bring."""
        for chat in self.chats:
            chat.check()


Enter = Callable[[Visit], Chat]


@dataclass(frozen=True)
class State:
    name: str
    enter: Enter
    widths: tuple[Width, ...]


STATES: dict[str, State] = {}


def state(*widths: Width) -> Callable[[Enter], Enter]:
    """Register a state that exists at these widths; at all without any."""

    def register(enter: Enter) -> Enter:
        name = enter.__name__.replace("_", "-")
        STATES[name] = State(name, enter, widths or WIDTHS)
        return enter

    return register


class Stage:
    """The servers and the browser. Servers start when a state needs them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._exits = contextlib.ExitStack()
        self.fake = FakeOpenAI(unknown_model=SCENARIO)

    def __enter__(self) -> Self:
        self._exits.enter_context(written_answers())
        self._exits.enter_context(self.fake)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @cached_property
    def halt(self) -> HaltServer:
        """A Halt with several models of two providers and with tools."""
        folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="halt-states-")))
        names = ", ".join(f'"{name}"' for name in MODELS)
        (folder / "halt.toml").write_text(
            f"""
            default = "llama/{MODELS[0]}"
            [providers.llama]
            kind = "openai"
            base_url = "{self.fake.base_url}"
            models = [{names}]
            [providers.work]
            kind = "openai"
            base_url = "{self.fake.base_url}"
            models = ["gpt-oss-20b", "gpt-oss-120b", "deepseek-v4", "a-model-with-a-name-that-is-much-longer-than-any-other-2026"]
            [providers.down]
            kind = "openai"
            base_url = "http://127.0.0.1:{free_port()}/v1"
            """
        )
        return self._started(
            {"HALT_CONFIG": str(folder / "halt.toml"), "HALT_TOOLS": "current_time,calculator"}
        )

    @cached_property
    def without_model(self) -> HaltServer:
        """A Halt for which no model is set up."""
        return self._started({})

    @cached_property
    def reading_text(self) -> HaltServer:
        """A Halt with a model that reads no images."""
        model = {"id": TEXT_MODEL, "architecture": {"input_modalities": ["text"]}}
        lists = {"object": "list", "data": [model]}
        server = serving(lambda request: request.reply(lists), lambda request: request.stream())
        return self._started(settings(self._exits.enter_context(server), HALT_MODEL=TEXT_MODEL))

    @cached_property
    def with_nothing(self) -> HaltServer:
        """A Halt of one person without any model, that finds a server which needs a key."""
        environment = self._exits.enter_context(without_demo())
        locked = self._exits.enter_context(RawServer(LOCKED))
        halt = self._started({**environment, "HALT_DISCOVER": f"127.0.0.1:{locked.port}"})
        client = halt.client()  # on a busy machine the first probe finds no server yet
        wait_until(lambda: b"It needs a key." in client.get("/").body, SERVER_TIMEOUT)
        return halt

    @cached_property
    def with_token(self) -> HaltServer:
        """A Halt that wants a token."""
        return self._started(settings(self.fake, HALT_TOKEN=TOKEN, HALT_MODEL=MODELS[0]))

    @cached_property
    def with_accounts(self) -> HaltServer:
        """A Halt whose people have accounts."""
        return self._started(
            settings(self.fake, HALT_USERS=1, HALT_MODEL=MODELS[0], HALT_OWN_KEYS=1)
        )

    @cached_property
    def people(self) -> ServerPeople:
        """The people of that Halt."""
        people = ServerPeople(self.with_accounts)
        self._exits.callback(people.close)
        return people

    @cached_property
    def oidc_provider(self) -> OidcProvider:
        """The provider of `with_oidc`."""
        return self._exits.enter_context(OidcProvider())

    @cached_property
    def with_oidc(self) -> HaltServer:
        """A Halt whose people sign in by OpenID Connect."""
        more = {
            **self.oidc_provider.settings,
            "HALT_OIDC_GROUPS": "family",
            "HALT_MODEL": MODELS[0],
        }
        return self._started(settings(self.fake, **more))

    @cached_property
    def without_model_server(self) -> HaltServer:
        """A Halt whose model server is down."""
        url = f"http://127.0.0.1:{free_port()}/v1"
        return self._started(settings(url, HALT_RETRIES=0, HALT_MODEL=MODELS[0]))

    def _started(self, env: dict[str, str]) -> HaltServer:
        server = HaltServer(env)
        self._exits.callback(server.close)
        return server

    @contextlib.contextmanager
    def visit(self, name: str, width: Width, **options: Any) -> Iterator[tuple[Visit, Page]]:
        """A tab in this state, in a session of its own, until the end of the context."""
        with contextlib.ExitStack() as cleanup:
            context = self._browser.new_context(**{**CONTEXTS[width], **options})
            context.set_default_timeout(PATIENCE)
            cleanup.callback(context.close)
            visit = Visit(self, context, width, cleanup)
            chat = STATES[name].enter(visit)
            visit.settle()
            yield visit, chat.page
            for server in visit.servers:
                context.request.post(f"{server.url}/stop-all")
            self.fake.release()


def usual_conversations() -> list[dict[str, Any]]:
    """Conversations of several days, as exported ones."""
    now = time.time()
    return [
        exported_conversation(title, "An answer.", title=title, at=now - age * DAY)
        for title, age in LISTED
    ]


def send(chat: Chat, prompt: str, state: str = "done") -> None:
    """Send a prompt and wait until its answer is in this state."""
    count = chat.exchange_count()
    chat.submit(prompt)
    expect(chat.page.locator(".exchange")).to_have_count(count + 1)
    chat.wait_state(state)


def search(chat: Chat, words: str) -> None:
    """Search in the open palette, for these words only: typed ones search for their beginnings too."""
    chat.page.get_by_role("dialog", name="Search").get_by_role("combobox").fill(words)


def answer_button(chat: Chat, name: str) -> Locator:
    """A button of the last exchange."""
    exchange = chat.page.locator(".exchange:last-child")
    exchange.hover()
    return exchange.get_by_role("button", name=name, exact=True).first


# --- empty ----------------------------------------------------------------------------------------


@state()
def empty(visit: Visit) -> Chat:
    return visit.open()


@state()
def first_visit(visit: Visit) -> Chat:
    """No conversation at all."""
    return visit.open(listed=False)


@state("desktop")
def theme_light(visit: Visit) -> Chat:
    """The light theme, chosen on the page."""
    return displayed(visit, "Light", "Small", "Wide")


@state("desktop")
def theme_dark(visit: Visit) -> Chat:
    """The dark theme, chosen on the page."""
    return displayed(visit, "Dark", "Large")


def displayed(visit: Visit, theme: str, *choices: str) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    dialog = chat.open_display()
    for choice in (theme, *choices):
        dialog.get_by_text(choice, exact=True).click()
    expect(chat.page.locator(f':root[data-theme="{theme.lower()}"]')).to_be_attached()
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    return chat


@state()
def without_model(visit: Visit) -> Chat:
    """No model is set up: the demo model answers, or a note says what to do."""
    chat = visit.open(visit.stage.without_model)
    note = re.compile("for trying Halt out|Ask an administrator")
    expect(chat.page.locator("#model-notice")).to_contain_text(note)
    return chat


@state()
def nothing_set_up(visit: Visit) -> Chat:
    """No model is set up, and a message was refused."""
    chat = visit.open(visit.stage.with_nothing)
    chat.allowed_problems = "503"
    chat.submit("Is anybody there?")
    expect(chat.page.locator("#notice")).to_contain_text("No model is set up")
    chat.page.get_by_role("button", name="Look again").click()
    expect(chat.page.locator(".no-model")).to_contain_text("None with a model was found.")
    return chat


@state()
def choosing_nothing(visit: Visit) -> Chat:
    """The panel of the model picker with the link to the page Models, and without a model."""
    chat = visit.open(visit.stage.with_nothing)
    button(chat).click()
    expect(chat.page.get_by_role("link", name="Manage models…")).to_be_visible()
    return chat


@state()
def pasted_texts(visit: Visit) -> Chat:
    """Long pasted texts above the message field: more than fit there."""
    chat = visit.open()
    texts = ["word " * 4_000, "<b>" + "x" * 30_000] * 4
    for text in texts:
        chat.prompt.evaluate(PASTE, text)
    cards = chat.page.get_by_role("list", name="Pasted texts").get_by_role("listitem")
    expect(cards).to_have_count(len(texts))
    return chat


@state()
def wrapped_code(visit: Visit) -> Chat:
    """Long lines of code wrap."""
    chat = visit.ask("Write two files.")
    chat.button("Wrap").first.click()
    expect(chat.button("Wrap").first).to_have_attribute("aria-pressed", "true")
    return chat


# --- answers that run -----------------------------------------------------------------------------


@state()
def streaming(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    send(chat, "Write the second one down.", "running")
    chat.wait_text("only whole lines")
    return chat


@state()
def typing_while_running(visit: Visit) -> Chat:
    """A text is written while an answer runs, and can be queued."""
    chat = visit.ask("Write the second one down.", "running")
    chat.prompt.fill("And then the first one, please.")
    expect(chat.page.get_by_role("button", name="Queue", exact=True)).to_be_visible()
    return chat


@state()
def long_paragraph_streaming(visit: Visit) -> Chat:
    return visit.watch("Write one long paragraph.", "This is the")


@state()
def scrolled_up(visit: Visit) -> Chat:
    """The reader has scrolled up while an answer grows below."""
    chat = visit.ask(page_answers.EVERYTHING)
    send(chat, "Write slowly.", "running")
    chat.wait_text("Decode")
    chat.page.mouse.move(500, 300)
    chat.page.mouse.wheel(0, -600)
    expect(chat.page.locator("#to-end.new")).to_be_visible()
    return chat


@state()
def code_streaming(visit: Visit) -> Chat:
    return visit.watch("Write code slowly.", "The arithmetic mean")


@state()
def list_streaming(visit: Visit) -> Chat:
    """An item is written, in the middle of bold words and below finished items."""
    return visit.watch("Write a list slowly.", "Third in")


@state()
def table_streaming(visit: Visit) -> Chat:
    """A row is written, below the complete ones."""
    return visit.watch("Write a table slowly.", "| A proxy")


@state()
def waiting(visit: Visit) -> Chat:
    """Before the first text."""
    chat = visit.ask("Wait before you write.", "running")
    expect(chat.answer.locator(".silence")).to_be_visible()
    return chat


@state()
def thinking(visit: Visit) -> Chat:
    chat = visit.ask("Think before you write.", "running")
    summary = chat.answer.locator(".step summary")
    expect(summary).to_contain_text("Thinking")
    summary.click()
    expect(chat.answer.locator(".step")).to_contain_text("The second is the")
    return chat


@state()
def tool_running(visit: Visit) -> Chat:
    chat = visit.ask("Calculate it slowly.", "running")
    expect(chat.answer.locator(".step summary")).to_contain_text("Calling")
    return chat


@state()
def stalled(visit: Visit) -> Chat:
    """No text for 40 s, by the clock of the page."""
    visit.context.clock.install()
    chat = visit.ask("Write the second one down.", "running")
    silence = chat.answer.locator(".silence")
    expect(silence).to_contain_text("No text for 2 s")  # the last text has come
    chat.page.clock.fast_forward(40_000)
    expect(silence).to_contain_text(re.compile(r"No text for 4\d s"))
    return chat


# --- answers that have ended ----------------------------------------------------------------------


@state()
def long_prompt(visit: Visit) -> Chat:
    """A prompt of many lines, of which the first are shown."""
    chat = visit.ask("\n".join(f"Line {n} of a long prompt." for n in range(60)))
    chat.page.evaluate("scrollTo(0, 0)")
    return chat


@state()
def files(visit: Visit) -> Chat:
    """A prompt with pictures and documents, one of them with a long name."""
    given = {
        "view.png": image(640, 480),
        "dot.png": image(1, 1),
        "A panorama of the valley.jpg": image(3000, 200, "JPEG"),
        "contract.pdf": pdf([f"Page {n}" for n in range(12)]),
        "The minutes of a meeting which took longer than all the others of that year.docx": docx(
            ["Text"]
        ),
        "table.csv": b"a,b\n1,2\n",
    }
    path = send_files(visit.context, visit.stage.halt.url, page_answers.SLOW_PARSER, given)
    chat = visit.open()
    chat.page.goto(chat.server.url + path)
    chat.wait_state("done")
    return chat


@state()
def attached(visit: Visit) -> Chat:
    """Files above the message field, one of which was not taken, and one that was not sent."""
    chat = visit.open()
    chat.allowed_problems = NETWORK_ERRORS
    away = re.compile("files.name=offline")
    chat.page.route(away, lambda route: route.abort())
    attach(
        chat,
        {
            "harbour.png": image(640, 480),
            "contract.pdf": pdf([f"Page {n} of the contract." for n in range(12)]),
            "דוח שנתי.txt": "שלום".encode(),
            "program.bin": bytes(range(256)),
            "offline.csv": b"a,b",
        },
    )
    expect(chat.page.locator("#attached .failed")).to_have_count(2)
    expect(chat.page.locator("#attached progress")).to_have_count(0)
    return chat


@state()
def images_not_read(visit: Visit) -> Chat:
    """A message with a picture, for a model that reads none."""
    chat = visit.open(visit.stage.reading_text)
    chat.allowed_problems = LOAD_ERRORS
    wait_offered(chat, TEXT_MODEL)
    attach(chat, {"harbour.png": image(640, 480)})
    expect(chat.page.locator("#attached progress")).to_have_count(0)
    chat.submit("What is this?")
    expect(chat.page.locator("#notice button")).to_be_visible()
    return chat


@state()
def held_by_files(visit: Visit) -> Chat:
    """A message that is sent when its files are uploaded."""
    network = visit.cleanup.enter_context(Network(visit.stage.halt))
    chat = visit.open(network)
    chat.allowed_problems = NETWORK_ERRORS
    network.hold_bodies("POST /files")
    long = b"words " * 3_000_000
    attach(
        chat,
        {
            "harbour.png": image(640, 480, compress_level=0),
            "book.txt": long,
            "server.log": long,
            "last.csv": b"a,b",
        },
    )
    chat.page.wait_for_function("() => document.querySelectorAll('progress')[1].value > 0")
    chat.submit("What is this?")
    expect(chat.page.get_by_text("Waiting for the files…")).to_be_visible()
    return chat


@state()
def dropping(visit: Visit) -> Chat:
    """Files are dragged over the page."""
    chat = visit.open()
    files = chat.page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['x'], 'x'));
          return data;
        }"""
    )
    chat.page.dispatch_event("main", "dragenter", {"dataTransfer": files})
    expect(chat.page.get_by_text("Drop to attach")).to_be_visible()
    return chat


@state()
def editing_files(visit: Visit) -> Chat:
    """A prompt with files is edited."""
    chat = visit.open()
    attach(chat, {"harbour.png": image(640, 480), "contract.pdf": pdf(["Page"])})
    send(chat, "Summarise it.")
    answer_button(chat, "Edit message").click()
    expect(chat.page.locator(".editor .attached li")).to_have_count(2)
    return chat


@state()
def queued_files(visit: Visit) -> Chat:
    """A message with files waits for the end of an answer."""
    chat = visit.ask(page_answers.SLOW_PARSER)
    send(chat, "Write the second one down.", "running")
    attach(chat, {"harbour.png": image(640, 480), "contract.pdf": pdf(["Page"])})
    expect(chat.page.locator("#attached progress")).to_have_count(0)
    chat.submit("Summarise it.")
    expect(chat.page.locator("#queue li")).to_contain_text(["harbour.png, contract.pdf"])
    return chat


def attach(chat: Chat, given: Mapping[str, bytes]) -> None:
    """Choose these files, by their names, for the message that is written."""
    files: list[FilePayload] = [
        {"name": name, "mimeType": mimetypes.guess_type(name)[0] or "", "buffer": data}
        for name, data in given.items()
    ]
    chat.page.locator("#picker").set_input_files(files)
    expect(chat.page.locator("#attached li")).to_have_count(len(files))


@state()
def two_exchanges(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    send(chat, page_answers.SECOND)
    return chat


@state()
def figures(visit: Visit) -> Chat:
    """All figures of an answer."""
    chat = visit.ask(page_answers.SLOW_PARSER)
    figures = chat.answer.locator("details.figures > summary")
    if figures.count():
        figures.click()
    return chat


@state()
def thought(visit: Visit) -> Chat:
    """An opened thought of an answer that is done."""
    chat = visit.ask(page_answers.SLOW_PARSER)
    chat.answer.locator(".step summary").click()
    expect(chat.answer.locator(".step-text")).to_be_visible()
    return chat


@state()
def tools_done(visit: Visit) -> Chat:
    chat = visit.ask("What are 17 times 23, and what time is it in Oslo?")
    for summary in chat.answer.locator(".step.tool summary").all():
        summary.click()
    return chat


@state()
def tool_failed(visit: Visit) -> Chat:
    chat = visit.ask("Divide by zero.")
    expect(chat.answer.locator(".step.tool")).to_contain_text("failed")
    return chat


@state()
def stopped(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    send(chat, "Write the second one down.", "running")
    chat.wait_text("only whole lines")
    chat.stop.click()
    chat.wait_state("stopped")
    return chat


@state()
def stopped_before_text(visit: Visit) -> Chat:
    """The prompt is in the message field again."""
    chat = visit.ask("Wait before you write.", "running")
    chat.stop.click()
    expect(chat.prompt).to_have_value("Wait before you write.")
    expect(chat.page.locator("#notice .note")).to_be_visible()
    expect(chat.send).to_be_visible()
    return chat


@state()
def refused_at_length(visit: Visit) -> Chat:
    """A refusal of 2,000 letters."""
    chat = visit.ask("Refuse at length.", "error")
    chat.answer.get_by_text("Show the server's whole answer").click()
    return chat


@state()
def server_down(visit: Visit) -> Chat:
    chat = visit.open(visit.stage.without_model_server)
    send(chat, page_answers.SLOW_PARSER, "error")
    return chat


@state()
def unsaved(visit: Visit) -> Chat:
    """Another program holds the database."""
    chat = visit.watch("Write slowly.", "Decode")
    database = sqlite3.connect(visit.stage.halt.data_folder / "halt.db", timeout=30)
    visit.cleanup.callback(database.close)
    database.execute("BEGIN IMMEDIATE")
    visit.cleanup.callback(database.rollback)
    expect(chat.page.locator("#saving")).to_be_visible()
    return chat


@state()
def connection_lost(visit: Visit) -> Chat:
    network = visit.cleanup.enter_context(Network(visit.stage.halt))
    chat = visit.open(network)
    chat.allowed_problems = NETWORK_ERRORS
    send(chat, "Write the second one down.", "running")
    chat.wait_text("only whole lines")
    chat.wait_style("formats")
    network.disconnect()
    visit.cleanup.callback(network.reconnect)
    expect(chat.page.get_by_text("Connection lost")).to_be_visible()
    return chat


# --- several models -------------------------------------------------------------------------------


def compare(visit: Visit, prompt: str) -> Chat:
    chat = visit.open()
    expect(chat.page.locator("#model option")).not_to_have_count(1)
    choose_several(chat, f"llama/{MODELS[0]}", f"llama/{MODELS[1]}")
    chat.submit(prompt)
    return chat


@state()
def comparing(visit: Visit) -> Chat:
    chat = compare(visit, "Write the second one down.")
    expect(chat.page.locator(".columns .answer")).to_have_count(2)
    for answer in chat.page.locator(".columns .answer").all():
        expect(answer.locator("> .text")).to_contain_text("only whole lines")
    return chat


@state()
def compared(visit: Visit) -> Chat:
    chat = compare(visit, page_answers.SECOND)
    expect(chat.page.locator(".columns .answer")).to_have_count(2)
    for answer in chat.page.locator(".columns .answer").all():
        expect(answer).to_have_attribute("data-state", "done")
    return chat


@state()
def compared_before(visit: Visit) -> Chat:
    """The other answers of a comparison, opened, above a later exchange."""
    chat = compared(visit)
    chat.page.get_by_role("button", name="Use this answer").first.click()
    others = chat.page.locator(".others")
    expect(others).to_be_visible()
    send(chat, "Thanks.")
    others.locator("> summary").click()
    return chat


@state()
def compare_choosing(visit: Visit) -> Chat:
    """Models are chosen for a comparison."""
    chat = visit.open()
    choose_several(chat, *(f"llama/{model}" for model in MODELS[:2]))
    button(chat).click()
    return chat


@state()
def choosing_model(visit: Visit) -> Chat:
    """The panel of the model picker is open."""
    chat = visit.open()
    wait_offered(chat, f"llama/{MODELS[0]}")
    button(chat).click()
    return chat


@state()
def no_model_found(visit: Visit) -> Chat:
    """A search for a model without a result."""
    chat = choosing_model(visit)
    chat.page.get_by_role("combobox", name="Search models").fill("a model that is not there")
    expect(chat.page.locator("#model-count")).to_be_visible()
    return chat


@state()
def only_model(visit: Visit) -> Chat:
    """The panel where no model is offered to choose."""
    chat = visit.open(visit.stage.without_model_server)
    button(chat).click()
    expect(chat.page.get_by_role("dialog", name="Models", exact=True)).to_be_visible()
    return chat


# --- editing, versions, queue ---------------------------------------------------------------------


@state()
def editing_prompt(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    answer_button(chat, "Edit message").click()
    expect(chat.page.get_by_role("textbox", name="Edit your message")).to_be_focused()
    return chat


@state()
def editing_answer(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    answer_button(chat, "Edit answer").click()
    expect(chat.page.get_by_role("textbox", name="Edit the answer")).to_be_focused()
    return chat


@state()
def answer_without_text(visit: Visit) -> Chat:
    """An edited answer that was saved without a text."""
    chat = editing_answer(visit)
    field = chat.page.get_by_role("textbox", name="Edit the answer")
    field.fill("")
    field.press("Control+Enter")
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def edited_answer(visit: Visit) -> Chat:
    chat = editing_answer(visit)
    chat.page.get_by_role("textbox", name="Edit the answer").fill("Measure first.")
    chat.page.get_by_role("button", name="Save", exact=True).click()
    expect(chat.answer).to_contain_text("Edited by you")
    return chat


@state()
def regenerating(visit: Visit) -> Chat:
    """Another version of an answer runs."""
    chat = visit.watch("Write the second one down.", "lines are handed on")
    chat.stop.click()
    chat.wait_state("stopped")
    answer_button(chat, "Write again").click()
    chat.wait_state("running")
    chat.wait_text("lines are handed on")
    return chat


@state()
def versions(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    answer_button(chat, "Write again").click()
    expect(chat.page.get_by_role("group", name="Versions of the answer")).to_be_visible()
    chat.wait_state("done")
    return chat


@state()
def versions_editing(visit: Visit) -> Chat:
    """A prompt that has versions is edited, above an answer that has some."""
    chat = versions(visit)
    answer_button(chat, "Edit message").click()
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    editor.fill("How do I find out where the time goes?")
    editor.press(chat.send_keys)
    expect(chat.page.get_by_role("group", name="Versions of the message")).to_be_visible()
    chat.wait_state("done")
    answer_button(chat, "Write again").click()
    expect(chat.page.get_by_role("group", name="Versions of the answer")).to_be_visible()
    chat.wait_state("done")
    answer_button(chat, "Edit message").click()
    expect(editor).to_be_focused()
    return chat


def queue(visit: Visit) -> Chat:
    chat = visit.ask("Write the second one down.", "running")
    for text in ("And then the first one, please.", page_answers.LONG_TITLE):
        chat.submit(text)
        expect(chat.page.locator("#queue li", has_text=text)).to_be_visible()
    return chat


@state()
def queued(visit: Visit) -> Chat:
    return queue(visit)


@state()
def queue_editing(visit: Visit) -> Chat:
    chat = queue(visit)
    chat.page.locator("#queue li").first.get_by_role("button", name="Edit").click()
    expect(chat.page.locator("#queue textarea")).to_be_focused()
    return chat


@state()
def queue_paused(visit: Visit) -> Chat:
    chat = queue(visit)
    chat.stop.click()
    expect(chat.page.locator("#queue-go")).to_be_visible()
    return chat


# --- the list of conversations --------------------------------------------------------------------


@state()
def long_list(visit: Visit) -> Chat:
    """A list of 150 conversations, one of which runs and one of which has a title of 300 letters."""
    now = time.time()
    visit.keep(
        *(
            exported_conversation("Hi", "Ho", title=f"Conversation {n}", at=now - n * DAY / 3)
            for n in range(150)
        ),
        exported_conversation("Hi", "Ho", title=page_answers.LONG_TITLE, at=now + 1),
    )
    chat = visit.ask("Write the second one down.", "running")
    visit.show_list(chat)
    return chat


def open_menu(visit: Visit, chat: Chat, title: str) -> Locator:
    visit.show_list(chat)
    item = chat.page.locator("#conversations > li", has_text=title)
    item.hover()
    item.get_by_role("button", name="More for").click()
    menu = chat.page.locator("#item-menu")
    expect(menu).to_be_visible()
    return menu


@state("phone")
def list_on_phone(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    visit.show_list(chat)
    return chat


@state()
def row_menu(visit: Visit) -> Chat:
    chat = visit.open()
    open_menu(visit, chat, LISTED[2][0])
    return chat


@state()
def renaming(visit: Visit) -> Chat:
    chat = visit.open()
    open_menu(visit, chat, LISTED[2][0]).get_by_text("Rename", exact=True).click()
    expect(chat.page.get_by_role("textbox", name="Title")).to_be_focused()
    return chat


@state()
def deleted(visit: Visit) -> Chat:
    """A conversation was deleted and can be restored."""
    chat = visit.open()
    open_menu(visit, chat, LISTED[2][0]).get_by_text("Delete", exact=True).click()
    expect(chat.page.get_by_role("button", name="Undo")).to_be_visible()
    return chat


@state()
def found_message(visit: Visit) -> Chat:
    """A message that was found, in the middle of a long conversation."""
    texts = [text for n in range(120) for text in (f"Question {n}?", f"Answer {n}. " * 9)]
    visit.keep(exported_conversation(*texts, title="A long conversation", at=time.time()))
    chat = palette(visit)
    search(chat, "Question 60")
    chat.page.locator("#palette-list .snippet").first.click()
    expect(chat.page.locator(".found")).to_be_visible()
    expect(chat.page.locator(".earlier")).to_be_attached()
    expect(chat.page.locator(".later")).to_be_attached()
    return chat


@state()
def archive(visit: Visit) -> Chat:
    """The archive with one conversation."""
    chat = visit.open()
    open_menu(visit, chat, LISTED[2][0]).get_by_text("Archive", exact=True).click()
    expect(chat.page.get_by_role("button", name="Undo")).to_be_visible()
    chat.page.goto(f"{chat.server.url}/?archived=1")
    visit.show_list(chat)
    expect(chat.page.locator("#conversations > li[id]")).to_have_count(1)
    return chat


@state()
def empty_archive(visit: Visit) -> Chat:
    chat = visit.open()
    chat.page.goto(f"{chat.server.url}/?archived=1")
    visit.show_list(chat)
    expect(chat.page.get_by_text("The archive is empty.")).to_be_visible()
    return chat


@state()
def selecting(visit: Visit) -> Chat:
    """Several conversations are selected."""
    chat = visit.open()
    open_menu(visit, chat, LISTED[2][0]).get_by_text("Select", exact=True).click()
    chat.page.locator("#conversations > li", has_text=LISTED[3][0]).get_by_role("checkbox").check()
    expect(chat.page.locator("#selected-count")).to_contain_text("2")
    return chat


@state()
def pinned(visit: Visit) -> Chat:
    """A pinned conversation above the days, and a running one that is open."""
    chat = visit.ask("Write the second one down.", "running")
    open_menu(visit, chat, LISTED[6][0]).get_by_text("Pin", exact=True).click()
    expect(chat.page.locator("#conversations > li[data-pinned]")).to_have_count(1)
    return chat


@state("desktop")
def rail_hidden(visit: Visit) -> Chat:
    chat = visit.ask(page_answers.SLOW_PARSER)
    chat.page.get_by_role("button", name="Hide the chat list").click()
    expect(chat.page.locator("#sidebar")).to_be_hidden()
    return chat


@state("phone")
def rail_swiped(visit: Visit) -> Chat:
    """The finger that opens the list is on its way."""
    chat = visit.open()
    chat.page.wait_for_function(SWIPE_IS_LOADED)
    chat.frames()
    session = visit.context.new_cdp_session(chat.page)
    for kind, x in (("touchStart", 5), ("touchMove", 30), ("touchMove", 120), ("touchMove", 200)):
        point = {"x": x, "y": 400}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    expect(chat.page.locator("body.swiping")).to_be_attached()
    return chat


@state()
def palette(visit: Visit) -> Chat:
    chat = visit.open()
    chat.page.keyboard.press("Control+k")
    expect(chat.page.locator("#palette-list").get_by_role("option").first).to_be_visible()
    return chat


@state()
def palette_results(visit: Visit) -> Chat:
    """Chats and messages that the palette has found, one of them in the archive, and more of them."""
    texts = [text for n in range(12) for text in (f"Question {n}?", f"Answer {n}.")]
    talk = exported_conversation(*texts, title="Answers", at=time.time() - DAY, archived_at=1.0)
    visit.keep(talk)
    chat = palette(visit)
    search(chat, "answer")
    expect(chat.page.get_by_role("option", name="More messages")).to_be_visible()
    return chat


@state()
def no_palette_results(visit: Visit) -> Chat:
    chat = palette(visit)
    search(chat, "words that no conversation has")
    expect(chat.page.locator("#palette-list").get_by_role("option")).to_have_count(0)
    return chat


@state("desktop")
def shortcuts(visit: Visit) -> Chat:
    """The dialog of all shortcuts."""
    chat = visit.open()
    chat.page.get_by_role("button", name="all shortcuts").click()
    expect(chat.page.locator("#shortcuts")).to_be_visible()
    return chat


# --- dialogs and menus ----------------------------------------------------------------------------


@state()
def settings_dialog(visit: Visit) -> Chat:
    chat = visit.open()
    chat.open_settings()
    expect(chat.page.get_by_label("Temperature")).to_be_visible()
    return chat


@state()
def display(visit: Visit) -> Chat:
    chat = visit.open()
    chat.open_display()
    expect(chat.page.get_by_label("Smooth out text")).to_be_visible()
    return chat


@state()
def settings_refused(visit: Visit) -> Chat:
    """A value that is not allowed, and the form that saves a prompt by its name."""
    chat = settings_dialog(visit)
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_text("Save as a prompt…").click()
    expect(chat.page.locator("#settings details[open] input")).to_be_focused()  # it took the focus
    chat.page.get_by_label("Temperature").fill("9")
    chat.page.get_by_role("button", name="Save", exact=True).click()
    expect(chat.page.locator("#settings [aria-invalid]")).to_be_visible()
    return chat


@state()
def settings_name_taken(visit: Visit) -> Chat:
    """A preset is saved under the name of another one."""
    chat = settings_dialog(visit)
    chat.allowed_problems = LOAD_ERRORS
    name = chat.page.get_by_label("Name of the preset")
    for temperature in ("0.1", "0.2"):
        chat.page.get_by_label("Temperature").fill(temperature)
        if not name.is_visible():
            chat.page.get_by_text("Save as a preset…").click()
        name.fill("My preset")
        chat.page.get_by_role("button", name="Save preset").click()
        expect(
            chat.page.locator("#settings-sampling-part option", has_text="My preset")
        ).to_have_count(1)
    expect(chat.page.get_by_role("button", name="Replace it")).to_be_visible()
    return chat


@state()
def person_menu(visit: Visit) -> Chat:
    chat = visit.open()
    visit.show_list(chat)
    chat.page.get_by_role("button", name="Display, archive, export and import").click()
    expect(chat.page.locator("#all-menu")).to_be_visible()
    return chat


@state()
def chat_menu(visit: Visit) -> Chat:
    """The head's menu on an archived chat."""
    talk = exported_conversation("Hi", "Ho", title="Kept apart", at=time.time(), archived_at=1.0)
    visit.keep(talk)
    chat = visit.open()
    chat.page.goto(f"{chat.server.url}/?archived=1")
    visit.show_list(chat)
    chat.page.locator("#conversations a").click()
    expect(chat.page.locator(".exchange")).to_have_count(1)
    chat.page.locator("#open-chat-menu").click()
    expect(chat.page.locator("#chat-menu")).to_be_visible()
    return chat


@state()
def rename_dialog(visit: Visit) -> Chat:
    """The open chat is renamed from the head."""
    chat = visit.ask(page_answers.SLOW_PARSER)
    chat.page.locator("#open-chat-menu").click()
    chat.page.locator("#rename-chat").click()
    expect(chat.page.get_by_role("textbox", name="Title")).to_be_focused()
    return chat


@state()
def import_error(visit: Visit) -> Chat:
    chat = person_menu(visit)
    chat.allowed_problems = LOAD_ERRORS
    file: Any = {"name": "a.json", "mimeType": "application/json", "buffer": b'{"format": "other"}'}
    chat.page.locator("#import input[type=file]").set_input_files(file)
    expect(chat.page.locator(".fault")).to_be_visible()
    return chat


# --- other pages ----------------------------------------------------------------------------------


@state()
def login(visit: Visit) -> Chat:
    chat = visit.open(visit.stage.with_token)
    expect(chat.page.get_by_label("Access token")).to_be_focused()
    return chat


@state()
def login_wrong(visit: Visit) -> Chat:
    chat = login(visit)
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_label("Access token").fill("another")
    chat.page.get_by_role("button", name="Sign in").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def sign_in_password(visit: Visit) -> Chat:
    """The form for a name and a password."""
    name = f"Person {secrets.token_hex(4)}"
    visit.stage.people.add_account(name, TOKEN)
    chat = visit.open(visit.stage.with_accounts)
    expect(chat.page.get_by_label("Name")).to_be_focused()
    return chat


@state()
def sign_in_password_wrong(visit: Visit) -> Chat:
    chat = sign_in_password(visit)
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_label("Name").fill("Ada Lovelace")
    chat.page.get_by_label("Password").fill("another")
    chat.page.get_by_role("button", name="Sign in").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def one_time_link(visit: Visit) -> Chat:
    """A one-time link's form, after two passwords that are not the same."""
    name = f"{secrets.token_hex(4)} {page_answers.LONG_TITLE}"[:60]
    token = visit.stage.people.add_link(name)
    chat = visit.open(visit.stage.with_accounts)
    chat.page.goto(f"{chat.server.url}/link?key={token}")
    chat.allowed_problems = LOAD_ERRORS
    chat.page.get_by_label("New password", exact=True).fill("a good password")
    chat.page.get_by_label("New password again").fill("another password")
    chat.page.get_by_role("button", name="Save and sign in").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


# --- the account ----------------------------------------------------------------------------------


def signed_in(visit: Visit, name: str = "Ada Lovelace", *, is_admin: bool = False) -> Chat:
    """The page of a person, who is signed in with two further browsers."""
    people, server = visit.stage.people, visit.stage.with_accounts
    person = people.add(name, is_admin=is_admin)
    people.cookie(person, PHONE_AGENT, "2001:db8:1:2::/64", 3 * DAY)
    people.cookie(person, "curl/8.14.1 " + "word" * 30, "203.0.113.7", 40 * DAY)
    people.sign_ins.add_token(person, f"digest-of-{person}", page_answers.LONG_TITLE[:60])
    people.sign_in(visit.context, person)
    return visit.open(server)


@state()
def account(visit: Visit) -> Chat:
    chat = signed_in(visit)
    chat.page.goto(f"{chat.server.url}/account")
    expect(chat.page.get_by_text("This browser")).to_be_visible()
    return chat


@state()
def account_menu(visit: Visit) -> Chat:
    """The menu of a person who has a long name."""
    chat = signed_in(visit, page_answers.LONG_TITLE[:60])
    visit.show_list(chat)
    chat.page.locator("#open-all").click()
    expect(chat.page.get_by_role("link", name="Account")).to_be_visible()
    return chat


def make_token(chat: Chat, name: str) -> None:
    """Fill in the form of a new API token and send it."""
    chat.page.get_by_label("Name of a new token").fill(name)
    chat.page.get_by_role("button", name="Make token").click()


@state()
def account_token_made(visit: Visit) -> Chat:
    """A new API token is shown."""
    chat = account(visit)
    make_token(chat, "Backup script")
    expect(chat.page.get_by_role("button", name="Copy")).to_be_visible()
    chat.page.get_by_text("Revoke…").first.click()
    return chat


@state()
def account_refused(visit: Visit) -> Chat:
    """A token without a name is refused."""
    chat = account(visit)
    chat.allowed_problems = LOAD_ERRORS
    make_token(chat, " ")
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def account_token_revoked(visit: Visit) -> Chat:
    """The page says what was done."""
    chat = account(visit)
    chat.page.get_by_text("Revoke…").click()
    chat.page.get_by_role("button", name="Revoke it").click()
    expect(chat.page.get_by_role("status")).to_be_visible()
    return chat


@state()
def account_people(visit: Visit) -> Chat:
    """What an administrator sees: the second page of many people."""
    for n in range(101):
        visit.stage.people.add(f"Person {n}")
    chat = signed_in(visit, is_admin=True)
    chat.page.goto(f"{chat.server.url}/account/people?page=2")
    expect(chat.page.get_by_role("row").nth(1)).to_be_visible()
    return chat


# --- OpenID Connect -------------------------------------------------------------------------------


@state()
def sign_in(visit: Visit) -> Chat:
    chat = visit.open(visit.stage.with_oidc)
    expect(chat.page.get_by_role("link", name="Sign in with")).to_be_visible()
    return chat


@state()
def sign_in_refused(visit: Visit) -> Chat:
    """The provider says why, in its own words."""
    provider = visit.stage.oidc_provider
    chat = sign_in(visit)
    chat.allowed_problems = f"{LOAD_ERRORS}|{re.escape(provider.issuer)}"
    provider.faults.add("denied")
    visit.cleanup.callback(provider.faults.clear)
    chat.page.get_by_role("link", name="Sign in with").click()
    expect(chat.page.get_by_role("alert")).to_be_visible()
    return chat


@state()
def signed_out(visit: Visit) -> Chat:
    """The sign-in here has ended; the one at the provider has not."""
    provider = visit.stage.oidc_provider
    provider.claims["groups"] = ["family"]
    chat = sign_in(visit)
    chat.allowed_problems = f"{LOAD_ERRORS}|{re.escape(provider.issuer)}"
    chat.page.get_by_role("link", name="Sign in with").click()
    chat.page.wait_for_url(f"{chat.server.url}/")
    visit.show_list(chat)
    chat.page.get_by_role("button", name="Display, archive, export and import").click()
    chat.page.get_by_role("button", name="Sign out").click()
    expect(chat.page.get_by_role("link", name="Sign out of")).to_be_visible()
    return chat


# --- hostile and long content ---------------------------------------------------------------------


@state()
def long_title(visit: Visit) -> Chat:
    """A title of 300 letters."""
    chat = visit.ask(page_answers.LONG_TITLE)
    visit.show_list(chat)
    return chat


# --- one prompt, and one page ---------------------------------------------------------------------


@state()
def picture_and_source(visit: Visit) -> Chat:
    """An answer with a picture, which was kept, and a source."""
    chat = visit.ask("Show a picture and its source.")
    expect(chat.answer.locator(".below img")).to_be_visible(timeout=PATIENCE)
    return chat


#: States that one prompt brings: the prompt, and the state of its answer.
ASKED = {
    "done": (page_answers.SLOW_PARSER, "done"),
    "every-kind-of-text": (page_answers.EVERYTHING, "done"),
    "named-code": ("Write two files.", "done"),
    "sources": ("Name three sources.", "done"),
    "many-sources": ("Name thirty sources.", "done"),
    "cut-off": ("Write until the limit.", "done"),
    "refused": ("Spend what I do not have.", "error"),
    "long-code-line": (page_answers.LONG_LINE, "done"),  # more than 5,000 letters
    "wide-table": (page_answers.WIDE_TABLE, "done"),  # thirty columns
    "hostile-text": (page_answers.HOSTILE.replace("\u0000", ""), "done"),
}
#: Other pages than the chat: the path, and patterns of the problems that it brings.
PAGES = {
    "api-documentation": ("/docs", ""),
    "page-not-found": ("/no-such-page", LOAD_ERRORS),
    "error-page": ("/stop-all", LOAD_ERRORS),
}


def other_page(visit: Visit, path: str, problems: str) -> Chat:
    chat = visit.open(visit.stage.halt)
    chat.allowed_problems = problems
    chat.page.goto(f"{visit.stage.halt.url}{path}")
    return chat


STATES |= {
    name: State(name, partial(Visit.ask, prompt=prompt, state=answer_state), WIDTHS)
    for name, (prompt, answer_state) in ASKED.items()
}
STATES |= {
    name: State(name, partial(other_page, path=path, problems=problems), WIDTHS)
    for name, (path, problems) in PAGES.items()
}

"""The chat in the terminal: `flask --app app chat` in pseudo-terminals and pipes, end to end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halt.cli import chat as chats
from halt.cli import pipe
from halt.cli.answer import STOPPED, TerminalAnswer
from halt.cli.attachments import AttachedFiles
from halt.cli.rich_screen import RichScreen
from halt.cli.screen import LAG, PACE, PlainScreen, Screen, Typewriter, clock
from halt.cli.source import EventStreamDecoder, Group, Local, Remote, RemoteError
from halt.config.settings import Config
from halt.core import notes
from halt.core.events import (
    HEARTBEAT,
    Content,
    Done,
    Event,
    Extra,
    Reasoning,
    ToolCall,
    ToolResult,
    sse,
)
from halt.core.metrics import Meter
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest, Message
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.model_info import UNKNOWN, Abilities
from halt.providers import embedded_model
from halt.providers.factory import make_upstream
from halt.testing.fake_openai import FakeOpenAI
from tests.support.chat_command import CHAT, Environment, Open, run_piped
from tests.support.halt_server import (
    EXIT_TIMEOUT,
    RECORD_TIMEOUT,
    ROOT,
    HaltServer,
    new_id,
    request_record,
)
from tests.support.model_servers import listing, models
from tests.support.races import interrupt_in
from tests.support.raw_server import RawServer
from tests.support.waiting import WAIT_TIMEOUT

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

pytestmark = pytest.mark.usefixtures("ctrl_c")


# --- in a pipe ------------------------------------------------------------------------------------


def test_pipe_prints_the_answer_alone(env: Environment) -> None:
    """Standard output is the answer as plain text, and the exit status is 0."""
    process = run_piped(env, "What is **this**?\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, "What is **this**?\n", "")


@pytest.mark.slow
def test_chat_neither_needs_nor_makes_the_data_folder(env: Environment, tmp_path: Path) -> None:
    """A chat in the terminal works without the data folder and does not create it."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "halt", tmp_path / "new"):
        process = run_piped({**env, "HALT_DATA": str(folder)}, "Hello?")
        assert (process.returncode, process.stdout, process.stderr) == (0, "Hello?\n", "")
        assert not folder.exists()


def test_pipe_error_is_a_sentence_and_an_exit_status(env: Environment) -> None:
    """In a pipe an error is a sentence on standard error, without a traceback, and a failing exit
    status.
    """
    process = run_piped(env, "Hello", "--model", "401")
    assert (process.returncode, process.stdout) == (1, "")
    message = "The model's server did not accept the API key. It said: Incorrect API key provided"
    assert process.stderr == f"{message}: fake.\n"


def test_pipe_ctrl_c_keeps_the_partial_answer_and_exits_with_130(
    env: Environment, shared_fake: FakeOpenAI
) -> None:
    """Ctrl-C in a pipe keeps the partial answer, closes the model's connection and exits
    with 130.
    """
    with subprocess.Popen(
        [*CHAT, "--model", "stall?n=3"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("stop me in the pipe")
        process.stdin.close()
        assert process.stdout.read(6) == "0 1 2 "
        process.send_signal(signal.SIGINT)
        assert process.wait(EXIT_TIMEOUT) == 130
        assert process.stdout.read() == "\n"
    assert request_record(shared_fake, "stop me in the pipe").closed.wait(RECORD_TIMEOUT)


# --- at a prompt ----------------------------------------------------------------------------------


def test_chat_ctrl_c_stops_the_answer(chat: Open, shared_fake: FakeOpenAI) -> None:
    """Ctrl-C stops the answer: its text stays, the next request marks it as stopped, and the chat
    goes on.
    """
    terminal = chat("--model", "stall?n=3", "--metrics")
    terminal.enter("first question of the stopped one")
    terminal.wait("(?m)^0 1 2")
    record = request_record(shared_fake, "first question of the stopped one")
    terminal.type("\x03")
    terminal.wait(r"Stopped\.")
    terminal.wait(r"connection closed after \d+ ms")
    assert record.closed.wait(RECORD_TIMEOUT)
    terminal.enter("/model echo")
    terminal.enter("and then the second")
    second = request_record(shared_fake, "and then the second")
    assert [m["content"] for m in second.body["messages"]] == [
        "first question of the stopped one",
        "0 1 2 ",
        f"{notes.STOPPED}\n\nand then the second",
    ]
    terminal.wait("(?m)^and then the second")
    terminal.enter("quit")
    assert terminal.wait_exit() == 0


@pytest.mark.parametrize("prompt", ["asked too early", " /fake"], ids=["text", "like a command"])
def test_chat_ctrl_c_before_any_text_restores_the_prompt(chat: Open, prompt: str) -> None:
    """Ctrl-C before any text puts the prompt back into the input line.

    The space before a prompt that reads like a command comes back too, so that Enter sends it.
    """
    terminal = chat("--model", "silent_first_token", "--no-history")
    terminal.enter(prompt)
    terminal.wait(r"…")
    terminal.type("\x03")
    terminal.wait(rf"Stopped\.\n> {re.escape(prompt)}\Z")
    terminal.type("\x03")  # clears the line
    terminal.wait(r"Stopped\.\n> *\Z")
    terminal.type("\x03")  # leaves
    assert terminal.wait_exit() == 130


def test_chat_ctrl_d_during_an_answer_ends_the_chat_after_it(
    chat: Open, shared_fake: FakeOpenAI
) -> None:
    """Ctrl-D during an answer ends the chat after it; keys pressed meanwhile are shown with the
    next prompt only.
    """
    terminal = chat("--model", "stall?n=3&rest=2", "--no-history")
    terminal.enter("leave me then")
    terminal.wait("(?m)^0 1 2")
    terminal.type("typed ahead\x15\x04")  # Ctrl-U: the line is empty again
    request_record(shared_fake, "leave me then").release()
    assert terminal.wait_exit() == 0
    assert "0 1 2 3 4" in terminal.text
    assert "typed ahead" not in terminal.text.partition("3 4")[0]


def test_chat_renders_markdown_while_it_streams(chat: Open) -> None:
    """Markdown is formatted while it streams, hostile HTML stays text, and each block is printed
    once.
    """
    terminal = chat("--model", "markdown?n=3&rate=400")
    terminal.enter("show me")
    terminal.wait(r"(?s)(A fixed answer.*){3}")
    text = terminal.wait(r"(?s)\A.*a bad link\S*.*\n> *\Z")[0]
    assert "**bold**" not in text
    assert "Some bold, some italic, inline code" in text
    assert '<script>alert("script")</script>' in text
    assert text.count("A fixed answer") == 3
    assert text.count("def greet(name: str)") == 3
    assert terminal.press_ctrl_d() == 0


def test_chat_removes_escape_sequences_of_the_model(chat: Open, shared_fake: FakeOpenAI) -> None:
    """Escape sequences of the model are removed: it can set no title, colour or clipboard."""
    shared_fake.texts["hostile"] = "before \x1b]0;owned\x07\x1b[31m\x9b2J after\r\n"
    terminal = chat("--model", "text?key=hostile")
    terminal.enter("go")
    terminal.wait(r"before \]0;owned\[31m2J after")
    assert b"\x1b]0;owned" not in terminal.raw


def test_chat_shows_thoughts_as_one_line(chat: Open) -> None:
    """The model's thoughts are shown as one line above its answer."""
    terminal = chat("--model", "reasoning?thoughts=3&n=3")
    terminal.enter("think")
    text = terminal.wait(r"(?s)thought for \d+\.\d s\n\n?0 1 2\s*\n> *\Z")[0]
    assert "thought1" not in text


def test_chat_marks_shown_text_that_was_a_thought(chat: Open, shared_fake: FakeOpenAI) -> None:
    """A line below shown text marks it as a thought; the next request has the answer alone."""
    terminal = chat("--model", "think_end?seconds=0&thoughts=3&n=3")
    terminal.enter("think")
    terminal.wait(r"(?s)thought2.*the text above was a thought\n\n?0 1 2\s*\n> *\Z")
    terminal.enter("and now")
    assert request_record(shared_fake, "and now").body["messages"][1]["content"].strip() == "0 1 2"


def test_chat_commands_have_their_effects(
    chat: Open, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """/help, /model, /system, /retry, /save and /clear have their effects, and an unknown command
    is named.
    """
    terminal = chat()
    terminal.enter("/help")
    terminal.wait("/save FILE +save")
    terminal.enter("/model")
    terminal.wait("(?m)^ +silent_headers")
    terminal.enter("/system Speak like a pirate.")
    terminal.enter("commands one")
    terminal.wait("(?m)^commands one")
    terminal.enter("/retry")
    second_record = request_record(shared_fake, "commands one", nth=1)
    assert second_record.body["messages"] == [
        {"role": "system", "content": "Speak like a pirate."},
        {"role": "user", "content": "commands one"},
    ]
    saved_file = tmp_path / "talk.md"
    terminal.enter(f"/save {saved_file}")
    terminal.wait(r"Saved to")
    assert "## You\n\ncommands one\n\n## echo\n\ncommands one\n" in saved_file.read_text()
    terminal.enter(f"/save {saved_file}")
    terminal.wait(r"already exists")
    terminal.enter("/save /no-such-folder/x")
    terminal.wait(r"/no-such-folder/x cannot be written: No such file or directory\.")
    terminal.enter("/clear")
    terminal.enter("commands two")
    assert len(request_record(shared_fake, "commands two").body["messages"]) == 2
    terminal.enter("/nothing")
    terminal.wait(r"There is no command /nothing: /help lists the commands\.")
    terminal.enter("exit")
    assert terminal.wait_exit() == 0


@pytest.mark.slow
def test_chat_history_is_private_and_comes_back_in_the_next_chat(
    chat: Open, tmp_path: Path
) -> None:
    """The history of inputs has mode 0600, and a key brings inputs back in the next chat."""
    terminal = chat()
    terminal.enter("remember me")
    terminal.wait("(?m)^remember me")
    terminal.enter("quit")
    assert terminal.wait_exit() == 0
    file = tmp_path / "halt" / "chat-history"
    assert "+remember me\n" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    second = chat()
    second.wait(r"(?m)^> *\Z")
    second.type("\x1b[A\x1b[A")
    second.wait(r"(?m)^> remember me\Z")


# --- with a running Halt ----------------------------------------------------------------------------


def test_chat_with_a_running_halt_stops_its_model(
    chat: Open, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A chat through another Halt works, and its Stop closes the connection to the model."""
    terminal = chat("--url", halt.url, "--model", "stall?n=3", OPENAI_BASE_URL="http://127.0.0.1:9")
    terminal.enter("remote and stopped")
    terminal.wait("(?m)^0 1 2")
    terminal.type("\x03")
    terminal.wait(r"Stopped\.")
    assert request_record(shared_fake, "remote and stopped").closed.wait(RECORD_TIMEOUT)
    terminal.enter("/model echo")
    terminal.enter("remote once more")
    terminal.wait("(?m)^remote once more")
    assert terminal.press_ctrl_d() == 0


@pytest.mark.slow
def test_chat_with_an_unreachable_halt_names_its_address(env: Environment) -> None:
    """An unreachable Halt is reported in one sentence with its address, without a traceback."""
    process = run_piped(env, "Hello", "--url", "http://127.0.0.1:9")
    assert process.returncode == 1
    assert (
        "Halt could not be reached at http://127.0.0.1:9: Connection refused. Is it running?"
        in process.stderr
    )
    assert "Errno" not in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_token_option_that_no_header_can_hold_is_refused(
    env: Environment,
) -> None:
    """A token that no header can hold is refused in one line that names the option and not the
    value.
    """
    process = run_piped(env, "Hello", "--url", "http://127.0.0.1:9", "--token", "öpen")
    assert process.returncode == 2
    assert "Invalid value for '--token': it has" in process.stderr
    assert "Traceback" not in process.stderr
    assert "öpen" not in process.stderr


class CuttingRelay:
    """A relay to a server that cuts its first connection after the given bytes."""

    def __init__(self, port: int, last_bytes: bytes) -> None:
        self._port, self._last_bytes = port, last_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, name="cutter", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                    self._relay(client, server, is_cut=self.connections == 1)

    def _relay(self, client: socket.socket, server: socket.socket, *, is_cut: bool) -> None:
        server.sendall(client.recv(65536))
        sent = b""
        while data := server.recv(65536):
            client.sendall(data)
            sent += data
            if is_cut and self._last_bytes in sent:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)


def test_remote_reconnects_after_a_dropped_connection(
    halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """After a dropped connection the chat reconnects: no event is lost and none comes twice."""
    cutting_relay = CuttingRelay(halt.port, b'2 "')
    remote = Remote(f"http://127.0.0.1:{cutting_relay.port}")
    prompt = new_id()
    request = ChatRequest([Message("user", prompt)], id=new_id(), model="stall?n=3&rest=4")
    events: list[tuple[int, Event]] = []
    try:
        for group in remote.start(request):
            events += group
            if cutting_relay.connections == 2:
                request_record(shared_fake, prompt).release()
    finally:
        remote.close()
        cutting_relay.close()
    assert "".join(e.content for _, e in events if isinstance(e, Content)) == "0 1 2 3 4 5 6 "
    assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
    assert isinstance(events[-1][1], Done)


def test_chat_requests_a_token_and_uses_it(chat: Open, start_halt: Any, env: Environment) -> None:
    """A chat requests the missing token and continues with it; a pipe prints a sentence."""
    halt = start_halt(env["OPENAI_BASE_URL"], HALT_TOKEN="open-sesame")
    process = run_piped(env, "Hello", "--url", halt.url)
    assert (process.returncode, process.stdout) == (1, "")
    assert "An access token is needed: set HALT_TOKEN, or give --token." in process.stderr
    process = run_piped(env, "Hello", "--url", halt.url, "--token", "wrong")
    assert (process.returncode, process.stdout) == (1, "")
    assert "The access token is wrong: set HALT_TOKEN, or give --token" in process.stderr
    terminal = chat("--url", halt.url, HALT_TOKEN="")
    terminal.wait("Access token:")
    terminal.type("öpen-sesame\r")
    terminal.wait("Error: .*\\s+Access token:")
    terminal.type("open-sesame\r")
    terminal.enter("let in")
    terminal.wait("(?m)^let in")
    assert "open-sesame" not in terminal.text


# --- parts ----------------------------------------------------------------------------------------


def test_typewriter_shows_all_text_within_its_lag() -> None:
    """Text that arrives in lumps is shown within LAG seconds, in order and in small steps."""
    lumps = [(0.0, 40), (0.01, 3), (0.02, 300), (0.3, 1), (0.31, 1), (0.7, 5000), (0.71, 2)]
    writer = Typewriter()
    text = "".join(chr(97 + i % 26) for i in range(sum(n for _, n in lumps)))
    fed_count, typed_text, steps = 0, "", 0
    due_counts: list[tuple[float, int]] = []
    time = 0.0
    while time < 1.2:
        while lumps and lumps[0][0] <= time:
            arrival, size = lumps.pop(0)
            writer.feed(text[fed_count : fed_count + size], arrival)
            fed_count += size
            due_counts.append((arrival + LAG, fed_count))
        piece = writer.take(time)
        steps += bool(piece)
        typed_text += piece
        assert all(len(typed_text) >= count for limit, count in due_counts if limit <= time)
        time += PACE
    assert typed_text == text
    assert steps > 15, "it is smooth: lumps become many small steps"


def test_typewriter_freezes_at_a_stop() -> None:
    """At a Stop text that has not been shown is dropped."""
    out = io.StringIO()
    screen = PlainScreen(out, out, quiet=True, typewriter=True)
    screen.begin()
    screen.show(Content("a" * 1000))
    screen.tick()
    output = out.getvalue()
    screen.freeze()
    screen.show(Content("b"))
    screen.end()
    assert len(output) < 1000
    assert out.getvalue().rstrip("\n") == output == screen.shown_text


PICTURE = "![a cat](data:image/png;base64," + "iVBORw0KGgo/8Qz+" * 100 + ")"


def show_answer(screen: Screen, text: str) -> None:
    """Show an answer that arrives in small pieces."""
    screen.begin()
    for start in range(0, len(text), 7):
        screen.show(Content(text[start : start + 7]))
        screen.tick()
    screen.end()


@pytest.mark.parametrize("quiet", [False, True])
def test_screen_shows_a_picture_as_a_line(quiet: bool) -> None:
    """A picture is shown as a line; the kept answer and a pipe's output have its data."""
    out = io.StringIO()
    screen = PlainScreen(out, out, quiet=quiet)
    for text in (f"Here:\n\n{PICTURE}\n\nNice!", PICTURE[:-1]):
        show_answer(screen, text)
        assert screen.shown_text == text
    line = "[Picture (PNG, 1 kB): a cat]"
    lines = f"Here:\n\n{line}\n\nNice!\n[Picture (PNG, 1 kB, incomplete)]\n"
    full_text = f"Here:\n\n{PICTURE}\n\nNice!\n{PICTURE[:-1]}\n"
    assert out.getvalue() == (full_text if quiet else lines)


@pytest.mark.parametrize("is_rich", [False, True])
def test_screen_shows_pictures_and_sources_below_the_text(is_rich: bool) -> None:
    """Pictures and sources are lines without data, each below its own answer alone."""
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=False)
    screen: Screen = RichScreen(console) if is_rich else PlainScreen(out, out)
    sources = [
        {"url": "https://a.example/one", "title": "One\x1b[31m"},
        {"url": "https://b.example"},
    ]
    picture = {"image_url": {"url": "data:image/png;base64,iVBORw0KGgoA"}}
    for extra_event in (
        Extra({"search_results": sources}, {}, {"images": [picture]}),
        Content("[2]"),
    ):
        screen.begin()
        screen.show(Content("Paris[1]"))
        screen.show(extra_event)
        screen.end()
    lines = [line.strip() for line in out.getvalue().split("\n") if line.strip()]
    lines_below = [
        "[Picture (PNG, 9 B)]",
        "[1] https://a.example/one One[31m",
        "[2] https://b.example",
    ]
    assert lines == ["Paris[1]", *lines_below, "Paris[1][2]"]


@pytest.mark.parametrize("end", ["", "\n\nThe end."])
def test_rich_screen_shows_markdown_as_the_page_does(end: str) -> None:
    """Lines, formulas, emphasis, breaks in cells and pictures are shown as on the page, in finished
    and open blocks.
    """
    out = io.StringIO()
    screen = RichScreen(Console(file=out, width=60, force_terminal=False))
    blocks = (
        "Roses are red\nViolets are blue",
        "so $a*b$ and $c*d$, \\(e_1 \\, x\\)",
        "\\[\na \\\\\n- b\n\\]",
        "**\u6ce8\u610f\uff1a**\u8bf7\u770b",
        "| a |\n|---|\n| one<br>two |",
        f"{PICTURE}Nice",
    )
    for block in blocks:
        show_answer(screen, block + end)
    lines = [line.strip() for line in out.getvalue().split("\n")]
    for line in (
        *("Roses are red", "Violets are blue", "so $a*b$ and $c*d$, \\(e_1 \\, x\\)"),
        *("\\[", "a \\\\", "- b", "\\]", "\u6ce8\u610f\uff1a\u8bf7\u770b", "one", "two"),
        *("[Picture (PNG, 1 kB): a cat]", "Nice"),
    ):
        assert line in lines


class HangingSource:
    """A source whose model is silent and whose Stop hangs; Ctrl-C is pressed in both."""

    name = "stuck"

    def __init__(self) -> None:
        self.released = threading.Event()

    def start(self, request: ChatRequest) -> Iterator[Group]:
        yield [(1, Content("seen"))]
        os.kill(os.getpid(), signal.SIGINT)
        self.released.wait(60)

    def stop(self, stream_id: str, seen: int) -> Receipt:
        os.kill(os.getpid(), signal.SIGINT)
        self.released.wait(60)
        return Receipt(stream_id, "stopped", "closed", 1.0)

    def model(self, stream_id: str) -> str:
        return ""

    def models(self) -> list[str]:
        return []

    def abilities(self, model: str) -> Abilities:
        return UNKNOWN

    def close(self) -> None:
        self.released.set()


def test_terminal_answer_second_ctrl_c_ends_it_while_stop_hangs() -> None:
    """A second Ctrl-C ends the answer while its Stop hangs."""
    out, source = io.StringIO(), HangingSource()
    request = ChatRequest([Message("user", "x")], id=new_id())
    try:
        with pytest.raises(KeyboardInterrupt):
            TerminalAnswer(source, request, PlainScreen(out, out)).run()
    finally:
        source.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class QuickSource:
    """A source that answers at once, unless it is to be stopped. Ctrl-C is pressed at `place`."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._stopped = threading.Event()
        self._is_stopped = place in {"before the answer", "as it begins", "as it is waited for"}

    def press_ctrl_c(self, place: str) -> None:
        if place == self._place:
            self._place = ""
            os.kill(os.getpid(), signal.SIGINT)

    @property
    def name(self) -> str:
        self.press_ctrl_c("before the first prompt")
        return "quick"

    def start(self, request: ChatRequest) -> Iterator[Group]:
        if self._place == "as it is waited for":
            self._place = ""
            interrupt_in(TerminalAnswer._show.__code__)
        if self._is_stopped:
            assert self._stopped.wait(WAIT_TIMEOUT)
        yield [(1, Content("whole")), (2, Done("stop", Meter().snapshot()))]

    def stop(self, stream_id: str, seen: int) -> Receipt:
        self._stopped.set()
        return Receipt(stream_id, "stopped", "closed", 1.0)

    def model(self, stream_id: str) -> str:
        self.press_ctrl_c("behind the answer")
        return ""

    def models(self) -> list[str]:
        return []

    def abilities(self, model: str) -> Abilities:
        return UNKNOWN

    def close(self) -> None:
        """Nothing is open."""


class BeginningScreen(PlainScreen):
    """A screen at whose beginning Ctrl-C may be pressed."""

    def __init__(self, out: io.StringIO, source: QuickSource) -> None:
        super().__init__(out, out)
        self._source = source

    def begin(self) -> None:
        super().begin()
        self._source.press_ctrl_c("as it begins")


@pytest.mark.parametrize(
    ("place", "note", "status"),
    [
        ("before the first prompt", "", STOPPED),
        ("before the answer", "Stopped.", 0),
        ("as it begins", "Stopped.", 0),
        ("as it is waited for", "Stopped.", 0),
        ("behind the answer", "The answer was already complete. Ctrl-C again leaves.", 0),
    ],
)
def test_chat_ctrl_c_at_an_odd_moment_counts_for_the_next_step(
    monkeypatch: pytest.MonkeyPatch, place: str, note: str, status: int
) -> None:
    """Ctrl-C between Enter and the answer stops the answer; just after an answer it does not end
    the chat.
    """
    source, out = QuickSource(place), io.StringIO()
    lines = iter(["question", "quit"])

    def new_request(*args: Any) -> ChatRequest:
        source.press_ctrl_c("before the answer")
        return ChatRequest([Message("user", "question")], id=new_id())

    monkeypatch.setattr(chats, "new_request", new_request)
    assert (
        chats.Chat(
            source, BeginningScreen(out, source), lambda _: next(lines), AttachedFiles(Config())
        ).run()
        == status
    )
    assert note in out.getvalue()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Listening(QuickSource):
    """A source that records the messages of its requests."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.prompts: list[list[str]] = []

    def start(self, request: ChatRequest) -> Iterator[Group]:
        self.prompts.append([str(message.content) for message in request.messages])
        return super().start(request)


@pytest.mark.parametrize(
    ("lines", "prompts"),
    [
        (["one", "clear", "two", "quit"], [["one"], ["two"]]),
        (["one", "Clear", "two", "EXIT"], [["one"], ["two"]]),
        (["one", "/clear", "two", "/exit"], [["one"], ["two"]]),
        (["one", " clear", "quit"], [["one"], ["one", "whole", "clear"]]),
        ([" quit", "exit"], [["quit"]]),
        (["clear the table", "quit"], [["clear the table"]]),
        (["quit now", "exit"], [["quit now"]]),
    ],
)
def test_chat_clear_quit_and_exit_need_no_slash(lines: list[str], prompts: list[list[str]]) -> None:
    """clear, quit and exit alone in a line are commands in any case; a blank before them sends the
    line.
    """
    source, out, inputs = Listening(), io.StringIO(), iter(lines)
    assert (
        chats.Chat(
            source, PlainScreen(out, out), lambda _: next(inputs), AttachedFiles(Config())
        ).run()
        == 0
    )
    assert source.prompts == prompts


def test_screen_shows_a_tool_call_as_one_line() -> None:
    """A tool call is a line with the tool's name, arguments and result, shortened if they
    are long.
    """
    out = io.StringIO()
    screen = PlainScreen(out, out)
    screen.begin()
    screen.show(Reasoning("hm"))
    screen.show(Content("Let me see. "))
    screen.show(ToolCall("c1", "weather", '{"city": "Oslo"}'))
    screen.show(ToolResult("c1", "weather", "cold\n" * 100, True, 1500.0))
    screen.show(Content("It is cold."))
    screen.end()
    lines = out.getvalue().splitlines()
    assert lines[1] == "Let me see. "
    assert re.fullmatch(r'\(weather {"city": "Oslo"} → (cold )+.*… \(1\.5 s\)\)', lines[2])
    assert lines[3] == "It is cold."


def test_event_stream_decoder_does_not_depend_on_the_pieces() -> None:
    """The decoder gives the same events from single bytes; it counts comments and skips unknown
    types.
    """
    events: list[tuple[int, Event]] = [(1, Content("å")), (2, Done("stop", Meter().snapshot()))]
    unknown_event = b'id: 9\ndata: {"type":"news"}\n\n'
    stream = (
        b":\n\n"
        + sse(*events[0])
        + HEARTBEAT
        + unknown_event
        + HEARTBEAT
        + sse(*events[1])
        + HEARTBEAT
    )
    frames = EventStreamDecoder()
    decoded = [pair for i in range(len(stream)) for pair in frames.feed(stream[i : i + 1])]
    assert decoded == events
    assert frames.comments == 4


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:0"])
def test_remote_refuses_an_invalid_address(url: str) -> None:
    """An invalid address is refused with a sentence that shows its form."""
    with pytest.raises(RemoteError, match="is not an address: use http"):
        Remote(url)


@pytest.mark.slow
def test_import_of_the_application_starts_no_thread(env: Environment) -> None:
    """The import of the application, as `flask --app app` does it, starts no thread and loads no
    terminal library and no parser of files.
    """
    script = (
        "import sys, threading, app; "
        "others = {'rich', 'prompt_toolkit', 'PIL', 'pypdfium2', 'docx', 'charset_normalizer'}; "
        "print(threading.active_count(), others & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "1 set()\n"


@pytest.mark.slow
def test_chat_without_a_key_starts_and_ends_the_demo_model(env: Environment) -> None:
    """Without a key a demo model is started for the chat alone, and its processes end after it."""
    if embedded_model.unavailable() is not None:
        pytest.skip("the demo model is not installed here")
    environment = {k: v for k, v in env.items() if not k.startswith("OPENAI_")}
    # The answer's length varies: it takes seconds, or minutes on a busy machine.
    process = run_piped(environment, "Say hello.", "--metrics", timeout=400)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()
    assert not CONTROL.search(process.stdout)
    assert embedded_model.MODEL in process.stderr


@pytest.mark.slow
def test_chat_without_a_key_uses_a_discovered_model_server(env: Environment) -> None:
    """Without a key a discovered model server is used before the demo model."""
    environment = {k: v for k, v in env.items() if not k.startswith("OPENAI_")}
    with RawServer(listing(models("text-embedding", "m"))) as server:
        # Discovery checks that address alone, where HOST is reached by other machines.
        environment |= {"HALT_DISCOVER": f"127.0.0.1:{server.port}", "HALT_ALLOW_ANONYMOUS": "1"}
        process = run_piped({**environment, "HOST": "0.0.0.0"}, "Say hello.")
    assert (process.returncode, process.stdout, process.stderr) == (0, "m answers.\n", "")


# --- ends and silence -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "status", "note"),
    [
        ("length?n=2", 0, "Cut off at the token limit."),
        ("length?n=2&reason=MAX_TOKENS", 0, "Cut off at the token limit."),
        ("length?n=2&reason=abort", 1, "The model's server ended the answer: abort."),
        ("empty", 1, "The model ended its answer without a text."),
        ("reasoning?thoughts=1&n=0", 0, ""),
    ],
)
def test_pipe_notes_the_end_of_an_answer(
    shared_fake: FakeOpenAI, model: str, status: int, note: str
) -> None:
    """In a pipe a broken-off answer is a failure, and an answer of thoughts alone is an answer."""
    out, err = io.StringIO(), io.StringIO()
    config = Config(base_url=shared_fake.base_url, api_key="fake")
    generations = GenerationService(config, make_upstream(config), StopRegistry())
    request = ChatRequest([Message("user", "Hello")], id=new_id(), model=model)
    source = Local(config, generations)
    assert pipe.print_answer(source, request, out, err, metrics=False, slow=False) == status
    assert err.getvalue().strip() == note
    generations.close()
    if model.startswith("reasoning"):
        assert out.getvalue().strip() == "thought0"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (95, "1:35"), (3600, "1:00:00")]
)
def test_clock_has_seconds_then_minutes_then_hours(seconds: float, text: str) -> None:
    """Durations are shown as 59 s, 1:35 and 1:00:00."""
    assert clock(seconds) == text


def test_screen_shows_the_length_of_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of a silence is shown now and then on a plain screen, always on the rich one,
    never in a pipe.
    """
    times = [100.0]
    for module in ("screen", "rich_screen"):
        monkeypatch.setattr(f"halt.cli.{module}.now", lambda: times[0])
    out, quiet_out, rich_out = io.StringIO(), io.StringIO(), io.StringIO()
    plain_screen = PlainScreen(out, out)
    quiet_screen = PlainScreen(quiet_out, quiet_out, quiet=True)
    console = Console(file=rich_out, force_terminal=True, width=80, color_system=None)
    rich_screen = RichScreen(console)
    screens = (plain_screen, quiet_screen, rich_screen)
    for screen in screens:
        screen.begin()

    def pass_time(seconds: float) -> None:
        times[0] += seconds
        for screen in screens:
            screen.tick()

    pass_time(29)
    assert out.getvalue() == ""
    pass_time(1)
    pass_time(1)
    pass_time(64)
    assert out.getvalue() == (
        "(waiting for the model, 30 s; Ctrl-C stops it)\n"
        "(waiting for the model, 1:35; Ctrl-C stops it)\n"
    )
    assert "waiting for the model, 1:35" in rich_out.getvalue()
    for screen in screens:
        screen.show(Content("Hello"))
    pass_time(0)
    pass_time(45)
    assert out.getvalue().endswith("Hello\n(no text for 45 s; Ctrl-C stops it)\n")
    assert "no text for 45 s" in rich_out.getvalue()
    for screen in screens:
        screen.end()
    assert quiet_out.getvalue() == "Hello\n"

"""A conversation in the terminal, with its commands."""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from halt.chat.figures import answer_figures
from halt.chat.file_contents import ImagesNotRead
from halt.cli.answer import STOPPED, Outcome, TerminalAnswer, model_of, on_signals
from halt.cli.attachments import AttachedFiles, ReadingStopped, numbered
from halt.cli.line_editor import keys_kept_unread
from halt.cli.paths import split_paths
from halt.cli.screen import Screen
from halt.cli.source import Source
from halt.clock import now
from halt.core.events import Cancelled, Failed
from halt.core.finish_reasons import ending
from halt.core.request import ChatRequest, Message
from halt.errors import HaltError
from halt.model_info import Abilities
from halt.store.models import Attachment, Exchange
from halt.store.prompt_messages import names_of

LATE_STOP = 1.0  # seconds after an answer in which Ctrl-C counts as a late Stop of it

COMMANDS = [
    "/attach",
    "/detach",
    "/clear",
    "/system",
    "/model",
    "/retry",
    "/save",
    "/help",
    "clear",
    "quit",
    "exit",
]

#: Commands that also work without a slash if they are the whole line, as in other terminal chats.
COMMANDS_WITHOUT_SLASH = frozenset({"clear", "quit", "exit"})
HELP = """\
/attach FILE    attach files to the next message; without FILE: list them
/detach NUMBER  take a file from the next message; without NUMBER: all files
/clear, clear   start a new conversation
/system TEXT    set the instructions for the model; without TEXT: show them
/model NAME     switch to another model; without NAME: list the models
/retry          send the last question again
/save FILE      save the conversation to FILE, as Markdown
/help           show this list
quit, exit      leave the chat; Ctrl-D does the same
Ctrl-C stops an answer and keeps the text shown so far; pressed again, it leaves the chat.
Alt-Enter starts a new line. A line that begins with a space is sent as it is."""


def new_request(messages: list[Message], exchange: Exchange, model: str) -> ChatRequest:
    """The request for the answer of this exchange."""
    return ChatRequest(messages, id=exchange.stream_id, model=model or None)


def new_exchange(
    prompt: str, files: Sequence[Attachment] = (), previous: Exchange | None = None
) -> Exchange:
    """A prompt that has no answer yet."""
    return Exchange(prompt, secrets.token_urlsafe(16), previous=previous, files=tuple(files))


def _leave(number: int, frame: object) -> None:
    """Signal handler while no answer is running: leave the program."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


class Chat:
    """A conversation at a prompt."""

    def __init__(
        self,
        source: Source,
        screen: Screen,
        read: Callable[[str], str],
        files: AttachedFiles,
        *,
        attached: Sequence[Attachment] = (),
        system: str = "",
        model: str = "",
        metrics: bool = False,
    ) -> None:
        """`read` returns a line from the user; its argument is the line's initial text.

        It raises EOFError at the end of the input, KeyboardInterrupt at Ctrl-C. `attached`: files
        of the first message.
        """
        self._source, self._screen, self._read = source, screen, read
        self._system, self._model, self._metrics = system, model, metrics
        self._exchanges: list[Exchange] = []
        self._files = files
        self._attached = list(attached)  # to the next message
        self._refusing: set[str] = set()  # the models that have refused an image
        self._draft = ""  # the prompt of an answer that was stopped before its first text
        self._answered_at = float("-inf")
        self._pending_signal: int | None = None  # came between a prompt and an answer
        self._commands: dict[str, Callable[[str], None]] = {
            "/attach": self._attach,
            "/detach": self._detach,
            "/clear": self._clear,
            "/quit": self._quit,
            "/exit": self._quit,
            "/system": self._set_system,
            "/model": self._choose_model,
            "/retry": self._retry,
            "/save": self._save,
            "/help": lambda _: self._screen.note(HELP),
        }

    def run(self) -> int:
        """Run until the user leaves; return the exit status."""
        with on_signals(self._keep_signal):
            self._screen.note(
                f"Chat with {self._model or self._source.name}. /help lists the commands."
            )
            if self._attached:
                self._list_attached()
            while True:
                try:
                    draft, self._draft = self._draft, ""
                    with self._leaving():
                        line = self._read(draft)
                except EOFError:
                    return 0
                except KeyboardInterrupt:
                    if now() - self._answered_at < LATE_STOP:
                        self._screen.note("The answer was already complete. Ctrl-C again leaves.")
                        self._answered_at = float("-inf")
                        continue
                    return STOPPED
                try:
                    self._handle(line)
                except EOFError:
                    return 0
                except KeyboardInterrupt:
                    return STOPPED
                except HaltError as fault:
                    self._screen.note(fault.message, bad=True)

    def _keep_signal(self, number: int, frame: object) -> None:
        """Signal handler between a prompt and an answer: keep the signal for the next of them."""
        if self._pending_signal is not None:
            _leave(number, frame)
        self._pending_signal = number

    def _take_pending_signal(self) -> int | None:
        number, self._pending_signal = self._pending_signal, None
        return number

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """A signal ends the block, also one that came before it."""
        with on_signals(_leave):
            number = self._take_pending_signal()
            if number is not None:
                _leave(number, None)
            yield

    def _handle(self, line: str) -> None:
        """Run a command or answer a prompt."""
        text = line.strip()
        if not text:
            return
        if text.lower() in COMMANDS_WITHOUT_SLASH and not line[0].isspace():
            text = f"/{text.lower()}"
        elif not line.startswith("/"):
            attached, self._attached = self._attached, []
            self._exchanges.append(new_exchange(text, attached))
            self._answer()
            return
        name, _, argument = text.partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._screen.note(
                f"There is no command {name}: /help lists the commands. "
                "To send it as text, begin the line with a space.",
                bad=True,
            )
        else:
            command(argument.strip())

    def _answer(self) -> None:
        """Answer the last prompt."""
        exchanges = self._exchanges
        exchange = exchanges[-1]
        try:
            messages = self._files.messages(exchanges, self._system, self._abilities)
        except HaltError as fault:
            self._take_back()
            hint = " /model NAME does that; /detach takes the image away."
            is_image = isinstance(fault, ImagesNotRead)
            self._screen.note(fault.message + hint * is_image, bad=True)
            return
        request = new_request(messages, exchange, self._model)
        try:
            with keys_kept_unread():
                outcome = TerminalAnswer(self._source, request, self._screen).run(
                    self._take_pending_signal
                )
        except KeyboardInterrupt:
            exchanges.pop()
            raise
        ended = outcome.ended
        if not isinstance(ended, Cancelled):
            self._answered_at = now()
        model = model_of(self._source, request)
        if outcome.text or not isinstance(ended, Cancelled):
            is_lost = not isinstance(ended, Cancelled) and not outcome.text
            exchanges[-1] = replace(
                exchange,
                answer=outcome.text,
                model=model,
                ended=ended,
                previous=exchange.previous if is_lost else None,
            )
        else:  # stopped before any text: the exchange is removed
            self._take_back()
        self._note_end(outcome, model)

    def _take_back(self) -> None:
        """Remove the last exchange; a new prompt is in the input line again, with its files."""
        exchange = self._exchanges.pop()
        if exchange.previous is not None:
            self._exchanges.append(exchange.previous)
        else:
            self._draft = _as_input(exchange.prompt)
            self._attached = list(exchange.files)

    def _abilities(self) -> Abilities:
        """What is known of the model."""
        known = self._source.abilities(self._model)
        is_refusing = self._model in self._refusing
        return known.replaced_by(Abilities(images=False)) if is_refusing else known

    def _note_end(self, outcome: Outcome, model: str) -> None:
        ended, receipt = outcome.ended, outcome.receipt
        if fault := outcome.fault:
            code = ended.error.code if isinstance(ended, Failed) else ""
            is_final = isinstance(ended, Failed) and not ended.error.retryable
            hint = "" if is_final else " /retry sends it again."
            if code == "images_refused":
                self._refusing.add(self._model)
                hint = " /model NAME chooses another model, /retry sends it again."
            self._screen.note(f"{fault}{hint}", bad=True)
        elif isinstance(ended, Cancelled):
            reason = outcome.note or "The answer was stopped by another client."
            self._screen.note("Stopped." if outcome.by_user else reason)
        elif outcome.note:
            self._screen.note(outcome.note)
        if self._metrics:
            figures = list(answer_figures(ended, model))
            if receipt is not None:
                figures.insert(
                    0, f"connection {receipt.upstream} after {receipt.elapsed_ms:.0f} ms"
                )
            self._screen.note(" · ".join(figures))

    # --- commands ---------------------------------------------------------------------------------

    def _quit(self, argument: str) -> None:
        raise EOFError

    def _attach(self, argument: str) -> None:
        for path in split_paths(argument):
            try:
                self._attached = self._files.added(path, self._attached, self._screen.note)
            except HaltError as fault:
                self._screen.note(fault.message, bad=True)
                if isinstance(fault, ReadingStopped):
                    break
        self._list_attached()

    def _list_attached(self) -> None:
        for line in numbered(self._attached):
            self._screen.note(line)
        if not self._attached:
            self._screen.note("No file is attached. /attach FILE attaches one.")

    def _detach(self, argument: str) -> None:
        if not argument:
            self._attached.clear()
        elif argument.isdecimal() and 0 < int(argument) <= len(self._attached):
            del self._attached[int(argument) - 1]
        else:
            self._screen.note(f"No attached file has the number {argument}.", bad=True)
        self._list_attached()

    def _clear(self, argument: str) -> None:
        self._exchanges.clear()
        self._screen.note("New conversation.")
        if self._attached:
            self._list_attached()

    def _set_system(self, argument: str) -> None:
        if argument:
            self._system = argument
        self._screen.note(self._system or "The model has no instructions.")

    def _choose_model(self, argument: str) -> None:
        if argument:
            self._model = argument
            self._screen.note(f"Model set to {argument}. Applies from the next answer.")
            return
        with self._leaving():
            names = self._source.models()
        for name in names:
            self._screen.note(f"{'*' if name == self._model else ' '} {name}")

    def _retry(self, argument: str) -> None:
        if not self._exchanges:
            self._screen.note("There is no question to send again.", bad=True)
            return
        last = self._exchanges[-1]
        self._refusing.discard(self._model)
        self._exchanges[-1] = new_exchange(last.prompt, last.files, last.shown_version())
        self._answer()

    def _save(self, argument: str) -> None:
        if not argument:
            self._screen.note("Give a file name: /save FILE", bad=True)
            return
        try:
            path = Path(argument).expanduser()
            with path.open("x", encoding="utf-8") as file:
                file.write(as_markdown(self._exchanges, self._system))
        except FileExistsError:
            self._screen.note(f"{path} already exists. Give another file name.", bad=True)
        except (OSError, RuntimeError, ValueError) as exc:
            reason = (isinstance(exc, OSError) and exc.strerror) or exc
            self._screen.note(f"{argument} cannot be written: {reason}.", bad=True)
        else:
            self._screen.note(f"Saved to {path}.")


def _as_input(prompt: str) -> str:
    """The input line that sends this prompt: with a space before it if it reads like a command."""
    is_command = prompt.startswith("/") or prompt.lower() in COMMANDS_WITHOUT_SLASH
    return f" {prompt}" if is_command else prompt


def as_markdown(exchanges: Iterable[Exchange], system: str) -> str:
    """The conversation as a Markdown document."""
    parts = [f"> System: {line}" for line in system.splitlines()]
    for exchange in exchanges:
        best = exchange.shown_version()
        parts.append(f"## You\n\n{names_of(exchange.prompt, exchange.files)}")
        parts.append(f"## {best.model or 'Answer'}\n\n{best.answer}".rstrip())
        if isinstance(best.ended, Cancelled):
            parts.append("*Stopped here.*")
        elif isinstance(best.ended, Failed):
            parts.append(f"*Failed here: {best.ended.error.message}*")
        elif best.ended is not None and (note := ending(best.ended.finish_reason)):
            parts.append(f"*{note}*")
    return "\n\n".join(parts) + "\n"

"""A chat in the terminal: one question through a pipe, or a conversation with commands.

The main thread shows, a second one reads the answer's events, a third one waits to press Stop.
A signal only puts a word into two queues, so Ctrl-C works whatever the other threads wait for: a
silent model, a dead network, or a pipe that nobody reads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from halt.chat.figures import figures, unwatched
from halt.cli.screen import PlainScreen, Screen
from halt.cli.source import Group, Source
from halt.clock import now
from halt.config.data_dir import make_folder, open_private
from halt.core.events import Cancelled, Done, ErrorInfo, Extra, Failed, Terminal, is_terminal
from halt.core.finish_reasons import EMPTY, STOP, broken_off, ending
from halt.core.metrics import Meter
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest
from halt.errors import HaltError, Interrupted
from halt.store.conversation import Exchange, exchanges_told

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

STOPPED = 130  # exit status, as a shell says it of a program that Ctrl-C has ended
GROUPS_AHEAD = 256  # groups of events that are read ahead of what is shown
#: Seconds until the main thread looks for signals by itself. One that comes in the moment between
#: Python's own look and the system's wait does not end the wait, and would be heard with the next
#: event: of a silent model never.
LISTENS_EVERY = 0.1
LATE_STOP = 1.0  # seconds after an answer in which a Ctrl-C was meant for it
HISTORY_MAX = 1_048_576  # bytes of the history file; half of it is kept when it grows beyond

COMMANDS = ["/clear", "/system", "/model", "/retry", "/save", "/help", "clear", "quit", "exit"]

#: Commands that need no slash where they stand alone: many terminal chats know them so.
BARE = frozenset({"clear", "quit", "exit"})
HELP = """\
/clear, clear   begin a new conversation
/system TEXT    instructions for the model; without TEXT: show them
/model NAME     let another model answer; without NAME: list the models
/retry          ask the last question again
/save FILE      write the conversation to FILE, as Markdown
/help           this list
quit, exit      leave; so does Ctrl-D
Ctrl-C stops an answer and keeps what you saw; pressed once more, it leaves.
Alt-Enter begins a new line. A line that begins with a space is sent as it is."""

logger = logging.getLogger(__name__)


class _Pressed:
    """Ctrl-C was pressed."""


class _End:
    """The reading thread has nothing more to say."""


@dataclass(frozen=True)
class Outcome:
    """How an answer ended, and the text of it that was shown."""

    text: str
    ended: Terminal
    by_user: bool = False  # it was stopped from here
    receipt: Receipt | None = None
    empty: bool = False  # nothing came at all


def ask(
    source: Source,
    request: ChatRequest,
    screen: Screen,
    early: Callable[[], int | None] = lambda: None,
) -> Outcome:
    """Ask and show the answer. The first Ctrl-C stops it, a second one raises KeyboardInterrupt.

    Called by the main thread. `early` gives a signal that came before this one listened to them.
    Faults of every kind are an Outcome that has failed.
    """
    assert request.id is not None  # noqa: S101
    return _Asking(source, request, request.id, screen).run(early)


class _Asking:
    """One answer that is being read, shown and perhaps stopped."""

    def __init__(
        self, source: Source, request: ChatRequest, stream_id: str, screen: Screen
    ) -> None:
        self._source, self._request, self._id, self._screen = source, request, stream_id, screen
        # SimpleQueue, because a signal's handler may put into it at any moment.
        self._inbox: queue.SimpleQueue[
            Group | Receipt | HaltError | type[_Pressed] | type[_End]
        ] = queue.SimpleQueue()
        self._presses: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._places = threading.Semaphore(GROUPS_AHEAD)
        self._seen = 0
        self._empty = True
        self._stopping = False
        self._pressed = False
        self._leaves: int | None = None  # a signal that ends the program, after the answer

    def run(self, early: Callable[[], int | None]) -> Outcome:
        try:
            with _on_signals(self._on_signal):
                pressed = early()
                if pressed is not None:
                    self._on_signal(pressed, None)
                for body in (self._read, self._wait_for_stop):
                    name = f"halt-chat{body.__name__}"
                    threading.Thread(target=body, name=name, daemon=True).start()
                self._screen.begin()
                outcome = self._show()
        finally:
            self._presses.put(False)
            self._screen.end()
        if self._leaves is not None:
            raise SystemExit(128 + self._leaves)
        return outcome

    def _on_signal(self, number: int, frame: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        if number != signal.SIGINT:
            self._leaves = number
        self._pressed = True
        self._presses.put(True)
        self._inbox.put(_Pressed)

    def _read(self) -> None:
        try:
            for group in self._source.start(self._request):
                if group:
                    self._places.acquire()
                    self._inbox.put(group)
        except HaltError as fault:
            self._inbox.put(fault)
        except Exception as exc:
            logger.exception("chat")
            self._inbox.put(HaltError(f"Something went wrong: {type(exc).__name__}."))
        finally:
            self._inbox.put(_End)

    def _wait_for_stop(self) -> None:
        if not self._presses.get():
            return
        try:
            self._inbox.put(self._source.stop(self._id, self._seen))
        except HaltError as fault:
            self._inbox.put(HaltError(f"Stop may not have reached the model. {fault.message}"))
        except Exception as exc:
            logger.exception("chat")
            self._inbox.put(HaltError(f"Stop failed: {type(exc).__name__}."))

    def _show(self) -> Outcome:
        screen = self._screen
        ended: Terminal | None = None
        receipt: Receipt | None = None
        while ended is None or screen.behind or (self._stopping and receipt is None):
            due = screen.tick()
            wait = LISTENS_EVERY if due is None else min(due, LISTENS_EVERY)
            try:
                item = self._inbox.get(timeout=wait)
            except queue.Empty:
                continue
            if isinstance(item, list):
                self._places.release()
                ended = self._take(item) or ended
            elif item is _Pressed:
                self._stopping = True
                screen.stand()
            elif isinstance(item, Receipt):
                receipt = item
            elif isinstance(item, HaltError):
                if not isinstance(item, Interrupted):
                    ended = ended or _failed(item)
                if self._stopping:
                    screen.note(item.message, bad=True)
                    break
            elif ended is None:
                ended = _failed(HaltError("The answer ended without an end."))
        assert ended is not None  # noqa: S101
        if self._stopping:  # what was seen counts, also where the model was quicker than Stop
            ended = Cancelled(ended.metrics)
        return Outcome(screen.shown, ended, self._stopping, receipt, self._empty)

    def _take(self, group: Group) -> Terminal | None:
        for seq, event in group:
            if is_terminal(event):
                return event
            # A server's own fields are no answer; those of a delta may be a picture.
            self._empty = self._empty and isinstance(event, Extra) and not event.delta
            if not self._stopping:
                self._screen.show(event)
                if not self._screen.behind:
                    self._seen = seq
        return None


def _failed(fault: HaltError) -> Failed:
    info = ErrorInfo(fault.code, fault.message, fault.retryable, fault.retry_after)
    return Failed(info, Meter().snapshot())


@contextlib.contextmanager
def _on_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Ctrl-C goes to this handler; so does the end of the terminal or of the system."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _leave(number: int, frame: object) -> None:
    """What a signal does where nothing is under way that it could stop."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextlib.contextmanager
def unread_keys() -> Iterator[None]:
    """Keys pressed meanwhile are kept for the next prompt as they are, and not shown.

    Ctrl-C is a signal still. Line by line the system would take Ctrl-D for an end of its own, and
    the prompt would never hear of it.
    """
    import termios  # noqa: PLC0415 - not on every platform

    try:
        before = termios.tcgetattr(0)
    except (termios.error, OSError):
        yield
        return
    quiet = list(before)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


# --- one question through a pipe ------------------------------------------------------------------


def answer_pipe(
    source: Source, request: ChatRequest, out: TextIO, err: TextIO, *, metrics: bool, slow: bool
) -> int:
    """Print the answer as plain text; the exit status."""
    screen = PlainScreen(out, err, quiet=True, typewriter=slow)
    try:
        outcome = ask(source, request, screen)
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        with contextlib.suppress(HaltError):
            source.stop(request.id or "", 0)
        raise
    ended = outcome.ended
    if isinstance(ended, Failed):
        screen.note(ended.error.message, bad=True)
    elif isinstance(ended, Done) and (fault := _fault(outcome, ended)):
        screen.note(fault, bad=True)
    elif isinstance(ended, Done) and (note := ending(ended.finish_reason)):
        screen.note(note)
    elif isinstance(ended, Cancelled) and ended.reason == "no_viewer":
        screen.note(unwatched(ended))
    if metrics:
        screen.note(" · ".join(figures(ended, _model(source, request))))
    if isinstance(ended, Cancelled):
        return STOPPED
    return 1 if isinstance(ended, Failed) or _fault(outcome, ended) else 0


def _fault(outcome: Outcome, ended: Done) -> str:
    """What is wrong with an answer that its model ended."""
    if outcome.empty and ended.finish_reason in {None, STOP}:
        return EMPTY
    return broken_off(ended.finish_reason)


def _model(source: Source, request: ChatRequest) -> str:
    with contextlib.suppress(HaltError):
        return source.model(request.id or "") or request.model or ""
    return request.model or ""


def one_question(prompt: str, system: str, model: str) -> ChatRequest:
    """A question that nothing came before."""
    return new_request([new_exchange(prompt)], system, model)


def new_request(exchanges: Sequence[Exchange], system: str, model: str) -> ChatRequest:
    """What the model is asked next; its ID is that of the last exchange."""
    return ChatRequest(
        exchanges_told(exchanges, system),
        id=exchanges[-1].stream_id,
        model=model or None,
    )


def new_exchange(prompt: str, previous: Exchange | None = None) -> Exchange:
    """A prompt whose answer is to come."""
    return Exchange(prompt, secrets.token_urlsafe(16), previous=previous)


# --- a conversation -------------------------------------------------------------------------------


class Leave(Exception):
    """The user has enough."""


class Chat:
    """A conversation at a prompt."""

    def __init__(
        self,
        source: Source,
        screen: Screen,
        read: Callable[[str], str],
        *,
        system: str = "",
        model: str = "",
        metrics: bool = False,
    ) -> None:
        """`read` gets a line from the user, given what is to stand in it already.

        It raises EOFError when there are no more, KeyboardInterrupt at Ctrl-C.
        """
        self._source, self._screen, self._read = source, screen, read
        self._system, self._model, self._metrics = system, model, metrics
        self._talk: list[Exchange] = []
        self._unsaid = ""  # a prompt that was taken back, for the user to change
        self._answered_at = float("-inf")
        self._kept: int | None = None  # a signal that came when nobody listened
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": self._clear,
            "/quit": self._quit,
            "/exit": self._quit,
            "/system": self._tell_system,
            "/model": self._choose_model,
            "/retry": self._retry,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> int:
        """Until the user leaves; the exit status."""
        with _on_signals(self._keep):
            return self._run()

    def _keep(self, number: int, frame: object) -> None:
        """A signal between a prompt and an answer: for whichever comes next."""
        if self._kept is not None:
            _leave(number, frame)
        self._kept = number

    def _early(self) -> int | None:
        number, self._kept = self._kept, None
        return number

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """A signal ends what is done inside."""
        with _on_signals(_leave):
            number = self._early()
            if number is not None:
                _leave(number, None)
            yield

    def _run(self) -> int:
        self._screen.note(
            f"You talk to {self._model or self._source.name}. /help says what you can do."
        )
        while True:
            try:
                unsaid, self._unsaid = self._unsaid, ""
                with self._leaving():
                    line = self._read(unsaid)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if now() - self._answered_at < LATE_STOP:
                    self._screen.note("The answer was complete already. Ctrl-C again leaves.")
                    self._answered_at = float("-inf")
                    continue
                return STOPPED
            try:
                self._obey(line)
            except Leave:
                return 0
            except KeyboardInterrupt:
                return STOPPED
            except HaltError as fault:
                self._screen.note(fault.message, bad=True)

    def _obey(self, line: str) -> None:
        said = line.strip()
        if not said:
            return
        if said.lower() in BARE and not line[0].isspace():
            said = f"/{said.lower()}"
        elif not line.startswith("/"):
            self._talk.append(new_exchange(said))
            self._answer()
            return
        name, _, rest = said.partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._screen.note(f"There is no command {name}. /help lists them.", bad=True)
        else:
            command(rest.strip())

    def _answer(self) -> None:
        """Answer the last prompt."""
        exchanges = self._talk
        asked = exchanges[-1]
        request = new_request(exchanges, self._system, self._model)
        try:
            with unread_keys():
                outcome = ask(self._source, request, self._screen, self._early)
        except KeyboardInterrupt:
            exchanges.pop()
            raise
        ended = outcome.ended
        if not isinstance(ended, Cancelled):
            self._answered_at = now()
        model = _model(self._source, request)
        if outcome.text or not isinstance(ended, Cancelled):
            lost = not isinstance(ended, Cancelled) and not outcome.text
            exchanges[-1] = replace(
                asked,
                answer=outcome.text,
                model=model,
                ended=ended,
                previous=asked.previous if lost else None,
            )
        else:  # stopped before any text: as if it had never been asked
            exchanges[-1:] = [asked.previous] if asked.previous else []
            self._unsaid = "" if asked.previous else asked.prompt
        self._say_end(outcome, model)

    def _say_end(self, outcome: Outcome, model: str) -> None:
        ended, receipt = outcome.ended, outcome.receipt
        if isinstance(ended, Failed):
            again = " /retry asks again." if ended.error.retryable else ""
            self._screen.note(ended.error.message + again, bad=True)
        elif isinstance(ended, Cancelled):
            elsewhere = (
                unwatched(ended) if ended.reason == "no_viewer" else "Stopped from elsewhere."
            )
            self._screen.note("Stopped." if outcome.by_user else elsewhere)
        elif fault := _fault(outcome, ended):
            self._screen.note(f"{fault} /retry asks again.", bad=True)
        elif note := ending(ended.finish_reason):
            self._screen.note(note)
        if self._metrics:
            told = list(figures(ended, model))
            if receipt is not None:
                told.insert(0, f"connection {receipt.upstream} after {receipt.elapsed_ms:.0f} ms")
            self._screen.note(" · ".join(told))

    # --- commands ---------------------------------------------------------------------------------

    def _quit(self, rest: str) -> None:
        raise Leave

    def _clear(self, rest: str) -> None:
        self._talk.clear()
        self._screen.note("A new conversation.")

    def _tell_system(self, rest: str) -> None:
        if rest:
            self._system = rest
        self._screen.note(self._system or "The model has no instructions.")

    def _choose_model(self, rest: str) -> None:
        if rest:
            self._model = rest
            self._screen.note(f"The next answers come from {rest}.")
            return
        with self._leaving():
            names = self._source.models()
        for name in names:
            self._screen.note(f"{'*' if name == self._model else ' '} {name}")

    def _retry(self, rest: str) -> None:
        if not self._talk:
            self._screen.note("There is nothing to answer again.", bad=True)
            return
        last = self._talk[-1]
        self._talk[-1] = new_exchange(last.prompt, last.best())
        self._answer()

    def _save(self, rest: str) -> None:
        if not rest:
            self._screen.note("Name a file: /save FILE", bad=True)
            return
        try:
            path = Path(rest).expanduser()
            with path.open("x", encoding="utf-8") as file:
                file.write(as_markdown(self._talk, self._system))
        except FileExistsError:
            self._screen.note(f"{path} exists already; name another file.", bad=True)
        except (OSError, RuntimeError, ValueError) as exc:
            self._screen.note(f"{rest} cannot be written: {exc}.", bad=True)
        else:
            self._screen.note(f"Saved to {path}.")

    def _help(self, rest: str) -> None:
        self._screen.note(HELP)


def as_markdown(exchanges: Iterable[Exchange], system: str) -> str:
    """The conversation as a Markdown document."""
    parts = [f"> System: {line}" for line in system.splitlines()]
    for exchange in exchanges:
        best = exchange.best()
        parts.append(f"## You\n\n{exchange.prompt}")
        parts.append(f"## {best.model or 'Answer'}\n\n{best.answer}".rstrip())
        if isinstance(best.ended, Cancelled):
            parts.append("*Stopped here.*")
        elif isinstance(best.ended, Failed):
            parts.append(f"*Broke off here: {best.ended.error.message}*")
        elif best.ended is not None and (note := ending(best.ended.finish_reason)):
            parts.append(f"*{note}*")
    return "\n\n".join(parts) + "\n"


# --- the input line -------------------------------------------------------------------------------


def input_line(history: Path | None, commands: list[str]) -> Callable[[str], str]:
    """The line that the user writes in, with a history in this file (None: of this chat alone)."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only where there is a terminal
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415
    from prompt_toolkit.output.vt100 import Vt100_Output  # noqa: PLC0415

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    output = create_output()
    if isinstance(output, Vt100_Output):
        # It would ask the terminal where the cursor is, warn of one that is slow to say, and after
        # Enter take a Ctrl-C that was meant for the answer.
        output.enable_cpr = False
    session: PromptSession[str] = PromptSession(
        "> ",
        output=output,
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        enable_history_search=True,
        key_bindings=keys,
    )
    return lambda unsaid: session.prompt(default=unsaid)


def plain_line(out: TextIO) -> Callable[[str], str]:
    """A line without editing or history, for where the output is no terminal."""

    def read(unsaid: str) -> str:
        out.write("> ")
        out.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read


def history_file(folder: Path) -> Path | None:
    """The file for the history, readable by its owner alone; None where it can't be written."""
    path = folder / "chat-history"
    try:
        make_folder(folder)
        with os.fdopen(open_private(path, os.O_RDWR | os.O_APPEND), "r+b") as file:
            if file.seek(0, os.SEEK_END) > HISTORY_MAX:
                file.seek(-HISTORY_MAX // 2, os.SEEK_END)
                kept = file.read().partition(b"\n#")[2]  # from the beginning of an entry
                file.truncate(0)
                file.write(b"\n#" + kept)
    except OSError:
        return None
    return path

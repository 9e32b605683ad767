"""One answer in the terminal: reads it, shows it, and stops it on Ctrl-C.

The main thread shows the answer, a second thread reads its events, a third thread waits to send
Stop. A signal handler only puts an item into two queues, so Ctrl-C works whatever the other threads
wait for: a silent model, a dead network, or a full pipe.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from halt.chat.figures import unwatched_text
from halt.cli.screen import Screen
from halt.cli.source import Group, Source
from halt.core.events import Cancelled, Done, ErrorInfo, Extra, Failed, Terminal, is_terminal
from halt.core.finish_reasons import EMPTY, STOP, ending, unusual_end_note
from halt.core.metrics import Meter
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest
from halt.errors import HaltError, Interrupted

STOPPED = 130  # exit status that shells give a program that was ended by Ctrl-C
GROUPS_AHEAD = 256  # groups of events that may be read ahead of the screen
#: Longest wait of the main thread, in seconds. A signal between Python's check for signals and the
#: system's wait does not end that wait: its handler would run with the next event, and of a silent
#: model none may come.
SIGNAL_INTERVAL = 0.1

logger = logging.getLogger(__name__)


class _Pressed:
    """Item of the inbox: Ctrl-C was pressed."""


class _End:
    """Item of the inbox: the reading thread has ended."""


@dataclass(frozen=True)
class Outcome:
    """How an answer ended, and its text that was shown."""

    text: str
    ended: Terminal
    by_user: bool = False  # stopped by Ctrl-C in this terminal
    receipt: Receipt | None = None
    empty: bool = False  # the answer had no content

    @property
    def fault(self) -> str:
        """The fault in words; empty if there is none or the answer was stopped."""
        if isinstance(self.ended, Failed):
            return self.ended.error.message
        if isinstance(self.ended, Cancelled):
            return ""
        if self.empty and self.ended.finish_reason in {None, STOP}:
            return EMPTY
        return unusual_end_note(self.ended.finish_reason)

    @property
    def note(self) -> str:
        """A remark on the end of an answer without a fault; may be empty."""
        if isinstance(self.ended, Done):
            return ending(self.ended.finish_reason)
        if isinstance(self.ended, Cancelled) and self.ended.reason == "no_viewer":
            return unwatched_text(self.ended)
        return ""


class TerminalAnswer:
    """Reads and shows one answer, and stops it on Ctrl-C. Used by the main thread."""

    def __init__(self, source: Source, request: ChatRequest, screen: Screen) -> None:
        assert request.id is not None  # noqa: S101
        self._source, self._request, self._id, self._screen = source, request, request.id, screen
        # SimpleQueue, because a signal handler may put into it at any moment.
        self._inbox: queue.SimpleQueue[
            Group | Receipt | HaltError | type[_Pressed] | type[_End]
        ] = queue.SimpleQueue()
        self._presses: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._places = threading.Semaphore(GROUPS_AHEAD)
        self._seen = 0
        self._empty = True
        self._stopping = False
        self._pressed = False
        self._exit_signal: int | None = None  # a signal that ends the program after the answer

    def run(self, early: Callable[[], int | None] = lambda: None) -> Outcome:
        """Send the request and show the answer until it ends.

        The first Ctrl-C stops the answer, a second one raises KeyboardInterrupt. `early` returns a
        signal that came before the handlers were set, or None. A fault of any kind gives an
        Outcome that has failed.
        """
        try:
            with on_signals(self._on_signal):
                pressed = early()
                if pressed is not None:
                    self._on_signal(pressed, None)
                for name, work in (("read", self._read), ("stop", self._wait_for_stop)):
                    threading.Thread(target=work, name=f"halt-chat-{name}", daemon=True).start()
                self._screen.begin()
                outcome = self._show()
        finally:
            self._presses.put(False)
            self._screen.end()
        if self._exit_signal is not None:
            raise SystemExit(128 + self._exit_signal)
        return outcome

    def _on_signal(self, number: int, frame: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        if number != signal.SIGINT:
            self._exit_signal = number
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
            self._inbox.put(HaltError(f"Internal error: {type(exc).__name__}."))
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
        while ended is None or screen.has_unshown_text or (self._stopping and receipt is None):
            due = screen.tick()
            wait = SIGNAL_INTERVAL if due is None else min(due, SIGNAL_INTERVAL)
            try:
                item = self._inbox.get(timeout=wait)
            except queue.Empty:
                continue
            if isinstance(item, list):
                self._places.release()
                ended = self._take(item) or ended
            elif item is _Pressed:
                self._stopping = True
                screen.freeze()
            elif isinstance(item, Receipt):
                receipt = item
            elif isinstance(item, HaltError):
                if not isinstance(item, Interrupted):
                    ended = ended or _failed(item)
                if self._stopping:
                    screen.note(item.message, bad=True)
                    break
            elif ended is None:
                ended = _failed(HaltError("The stream ended before the answer was complete."))
        assert ended is not None  # noqa: S101
        if self._stopping:  # the shown text is kept, even if the model ended before the Stop
            ended = Cancelled(ended.metrics)
        return Outcome(screen.shown_text, ended, self._stopping, receipt, self._empty)

    def _take(self, group: Group) -> Terminal | None:
        for seq, event in group:
            if is_terminal(event):
                return event
            # A server's own fields are not content, except those of a delta: it may be a picture.
            self._empty = self._empty and isinstance(event, Extra) and not event.delta
            if not self._stopping:
                self._screen.show(event)
                if not self._screen.has_unshown_text:
                    self._seen = seq
        return None


def _failed(fault: HaltError) -> Failed:
    info = ErrorInfo(fault.code, fault.message, fault.retryable, fault.retry_after)
    return Failed(info, Meter().snapshot())


@contextlib.contextmanager
def on_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Route SIGINT, SIGTERM and SIGHUP to this handler; restore the old ones at the end."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def model_of(source: Source, request: ChatRequest) -> str:
    """The name of the model that answered or was requested; empty if unknown."""
    with contextlib.suppress(HaltError):
        return source.model(request.id or "") or request.model or ""
    return request.model or ""

"""Titles of conversations, made by the model from the first exchange, in the background.

A title is a convenience: it delays no answer. A title is asked for only while no generation is
under way; when one starts, the title's connection is closed at once, so that a model's server with
one place has it free, and the title is asked for again when all are over, TRIES times at most and
within REQUEST_LIFETIME. A conversation has its first words for a title from the beginning
(`halt.store.title_text`). One thread at most, which lives as long as there is something to do; a
short queue; no place of a stream's.

Generations of this process close the connection by `give_way`, before their own request is sent.
Those of other processes are seen by `is_idle`, once for each TICK.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from halt.clock import now
from halt.config.settings import Config
from halt.core.connection import NoData, UpstreamConnection, limited_connection
from halt.core.events import Content, ReasoningEnd
from halt.core.request import ChatRequest, Message, Reply, Upstream
from halt.errors import HaltError
from halt.rendering import data_urls
from halt.store.title_text import cleaned, is_about

TRIES = 3  # requests for one title: each that is dropped is paid for
REQUEST_LIFETIME = 600.0  # seconds after its exchange in which a title is made
IDLE_CHECK_INTERVAL = 1.0  # seconds between checks whether other processes are idle
QUEUE_MAX = 32  # conversations that wait for a title; further ones keep their first words
SECONDS = 20.0  # for one title
EXCERPT_MAX = 1000  # characters of prompt and answer each that the model is shown
MAX_TOKENS = 256  # of a title; most of them are for the thoughts of models that think
REPLY_MAX = 200  # characters of an answer within which a title must have come to its end
CLOSE_WAIT = 2.0  # seconds that closing waits for the thread

#: With examples, since small models answer the question otherwise.
INSTRUCTION = """\
Give the last conversation a title of two to six words, in its own language. Answer with the title \
alone: no quotation marks, no full stop, nothing else.

User: Wie lange muss ein Ei kochen?
Assistant: Sechs bis neun Minuten, je nachdem, wie hart es werden soll.
Title: Kochzeit von Eiern

User: write a poem about autumn for my grandmother
Assistant: Golden leaves are falling down ...
Title: Autumn poem for a grandmother

User: Traceback: KeyError: 'name'. what is wrong with my code
Assistant: The dictionary has no such key ...
Title: KeyError in Python code

User: {prompt}
Assistant: {answer}
Title:"""

logger = logging.getLogger(__name__)


class _Postponed(Exception):
    """A generation has begun, so this title is not asked for now."""


class _TitleRequest(NamedTuple):
    conversation_id: str
    prompt: str
    answer: str
    model: str | None
    since: float = 0.0  # on the clock of `now`
    tries: int = TRIES  # that are left


class Titles:
    """Makes titles, one after the other."""

    def __init__(
        self,
        upstream: Upstream,
        config: Config,
        save: Callable[[str, str], object],
        is_idle: Callable[[], bool] = lambda: True,
        is_listed: Callable[[str], bool] = lambda conversation_id: True,
    ) -> None:
        """`save` is called with a conversation's ID and its title, by the thread that makes titles.

        What it raises is logged and ends nothing. `is_idle` says whether no generation is under
        way. `is_listed` says whether a conversation has not been deleted: no title is made for one
        that has.
        """
        self._upstream = upstream
        self._save = save
        self._is_idle = is_idle
        self._is_listed = is_listed
        self._by_model = config.titles == "model"
        self._changed = threading.Condition()  # protects the five below
        self._queue: deque[_TitleRequest] = deque()
        self._thread: threading.Thread | None = None
        self._connection: UpstreamConnection | None = None  # of the title that is being made
        self._was_interrupted = False  # that connection was interrupted for a generation
        self._closed = False

    def request(
        self, conversation_id: str, prompt: str, answer: str, model: str | None = None
    ) -> bool:
        """A conversation has its first exchange; `model` is the one that it talks to.

        Returns at once. False: no title will be made, so its first words stay.
        """
        if not self._by_model or not prompt.strip() or not answer.strip():
            return False
        with self._changed:
            if self._closed or len(self._queue) >= QUEUE_MAX:
                return False
            told = prompt[:EXCERPT_MAX], data_urls.replace_for_model(answer)[:EXCERPT_MAX]
            self._queue.append(_TitleRequest(conversation_id, *told, model, now()))
            self._changed.notify_all()
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="halt-titles", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more threads
                    self._queue.pop()
                    return False
                self._thread = thread
        return True

    def interrupt(self) -> None:
        """A generation begins: drop the title that is being made. It is made later.

        To be called when `is_idle` says no already.
        """
        with self._changed:
            connection = self._connection
            self._was_interrupted = connection is not None
        if connection is not None:
            connection.interrupt()

    def wake(self) -> None:
        """A generation is over: there may be none any more."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Make no more titles, and give up the one that is being made. Harmless when repeated."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
            connection, thread = self._connection, self._thread
        if connection is not None:
            connection.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_WAIT)

    def _work(self) -> None:
        while (wanted := self._next()) is not None:
            try:
                title = self._make(wanted)
                if title:
                    self._save(wanted.conversation_id, title)
            except _Postponed:
                with self._changed:
                    if wanted.tries > 1 and not self._closed:
                        self._queue.appendleft(wanted._replace(tries=wanted.tries - 1))
            except HaltError as fault:
                logger.info("no title for conversation %s: %s", wanted.conversation_id, fault)
            except Exception:
                logger.exception("title of conversation %s", wanted.conversation_id)

    def _next(self) -> _TitleRequest | None:
        """The next title to be made, when no generation is under way; None: there is none."""
        while True:
            with self._changed:
                while self._queue and now() - self._queue[0].since > REQUEST_LIFETIME:
                    self._queue.popleft()
                if not self._queue:
                    self._thread = None
                    return None
                if self._is_idle():
                    return self._queue.popleft()
                self._changed.wait(IDLE_CHECK_INTERVAL)

    def _make(self, wanted: _TitleRequest) -> str:
        """Ask the model; empty where no title came of it.

        Raises UpstreamError, Interrupted, _Postponed.
        """
        if not self._is_listed(wanted.conversation_id):
            return ""
        told = INSTRUCTION.format(prompt=wanted.prompt.strip(), answer=wanted.answer.strip())
        request = ChatRequest([Message("user", told)], model=wanted.model, max_tokens=MAX_TOKENS)
        with limited_connection(SECONDS) as connection:
            with self._changed:
                if self._closed:
                    return ""
                self._connection, self._was_interrupted = connection, False
            try:
                if not self._is_idle():  # a generation that comes later finds the connection
                    raise _Postponed
                with contextlib.closing(self._upstream.open(request, connection)) as reply:
                    title = cleaned(self._read(reply))
            except HaltError:
                if self._was_interrupted:
                    raise _Postponed from None
                raise
            finally:
                with self._changed:
                    self._connection = None
        return title if is_about(title, wanted.prompt + wanted.answer) else ""

    def _read(self, reply: Reply) -> str:
        """What the model says, up to the end of a line; empty where that is too long."""
        said = ""
        while len(said) < REPLY_MAX:
            if not self._is_idle():
                raise _Postponed
            try:
                part = reply.read()
            except NoData:
                continue
            for event in part.events:
                if isinstance(event, ReasoningEnd):
                    said = ""
                elif isinstance(event, Content):
                    said += event.content
            if part.ended or "\n" in said.strip():
                return said
        return ""

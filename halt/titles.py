"""Titles of conversations, made by the model from the first exchange, in the background.

A title is a convenience: it delays nobody and takes nothing from anybody. A conversation has its
first words for a title from the beginning (`halt.headings`); where the model makes a better one in
time, `save` is called with it, and otherwise nothing happens. One thread at most, which lives as
long as there is something to do; a short queue; one try for each; no place of a stream's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from halt.chat import ChatRequest, Message, Reply, Upstream
from halt.config import Config
from halt.errors import HaltError
from halt.events import Content, ReasoningEnd
from halt.headings import cleaned, is_about
from halt.line import TICK, Line, Quiet, limited

QUEUE_MOST = 32  # conversations that wait for a title; further ones keep their first words
SECONDS = 20.0  # for one title
TOLD_MOST = 1000  # characters of prompt and answer each that the model is shown
MAX_TOKENS = 256  # of a title; most of them are for the thoughts of models that think
SAID_MOST = 200  # characters of an answer within which a title must have come to its end
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

Save = Callable[[str, str], None]


class _Wanted(NamedTuple):
    conversation_id: str
    prompt: str
    answer: str
    model: str | None


class Titles:
    """Makes titles, one after the other."""

    def __init__(
        self,
        upstream: Upstream,
        config: Config,
        save: Save,
        has_room: Callable[[], bool] = lambda: True,
        is_there: Callable[[str], bool] = lambda conversation_id: True,
    ) -> None:
        """`save` is called with a conversation's ID and its title, by the thread that makes titles.

        What it raises is logged and ends nothing. `has_room` says whether a place for a stream is
        free: without one no title is begun, and one that is being made is given up. `is_there` says
        whether a conversation has not been deleted: no title is made for one that has.
        """
        self._upstream = upstream
        self._save = save
        self._has_room = has_room
        self._is_there = is_there
        self._by_model = config.titles == "model"
        self._changed = threading.Condition()  # protects the four below
        self._queue: deque[_Wanted] = deque()
        self._thread: threading.Thread | None = None
        self._line: Line | None = None  # of the title that is being made
        self._closed = False

    def wanted(
        self, conversation_id: str, prompt: str, answer: str, model: str | None = None
    ) -> bool:
        """A conversation has its first exchange; `model` is the one that it talks to.

        Returns at once. False: no title will be made, so its first words stay.
        """
        if not self._by_model or not prompt.strip() or not answer.strip():
            return False
        with self._changed:
            if self._closed or len(self._queue) >= QUEUE_MOST:
                return False
            told = _Wanted(conversation_id, prompt[:TOLD_MOST], answer[:TOLD_MOST], model)
            self._queue.append(told)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="halt-titles", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more threads
                    self._queue.pop()
                    return False
                self._thread = thread
        return True

    def close(self) -> None:
        """Make no more titles, and give up the one that is being made. Harmless when repeated."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            line, thread = self._line, self._thread
        if line is not None:
            line.interrupt()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_WAIT)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._thread = None
                    return
                wanted = self._queue.popleft()
            try:
                title = self._make(wanted)
                if title:
                    self._save(wanted.conversation_id, title)
            except HaltError as fault:
                logger.info("no title for conversation %s: %s", wanted.conversation_id, fault)
            except Exception:
                logger.exception("title of conversation %s", wanted.conversation_id)

    def _make(self, wanted: _Wanted) -> str:
        """Ask the model; empty where no title came of it. Raises UpstreamError, Interrupted."""
        if not self._has_room() or not self._is_there(wanted.conversation_id):
            return ""
        told = INSTRUCTION.format(prompt=wanted.prompt.strip(), answer=wanted.answer.strip())
        request = ChatRequest([Message("user", told)], model=wanted.model, max_tokens=MAX_TOKENS)
        with limited(SECONDS) as line:
            with self._changed:
                if self._closed:
                    return ""
                self._line = line
            try:
                with contextlib.closing(self._upstream.open(request, line)) as reply:
                    title = cleaned(self._read(reply))
            finally:
                with self._changed:
                    self._line = None
        return title if is_about(title, wanted.prompt + wanted.answer) else ""

    def _read(self, reply: Reply) -> str:
        """What the model says, up to the end of a line; empty where it was given up."""
        said = ""
        while len(said) < SAID_MOST:
            if not self._has_room():
                return ""
            try:
                part = reply.read(TICK)
            except Quiet:
                continue
            for event in part.events:
                if isinstance(event, ReasoningEnd):
                    said = ""
                elif isinstance(event, Content):
                    said += event.content
            if part.ended or "\n" in said.strip():
                return said
        return ""

"""A worker process for `tests.server.test_generation_invariants`.

It has the parts of the real application, and a scripted upstream. It receives calls over a pipe,
one after the other. The test kills it with SIGKILL.
"""

from __future__ import annotations

import multiprocessing
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from halt.app import create_app
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection
from halt.core.events import Event
from halt.core.generation import Generation
from halt.core.request import ChatRequest, Message
from halt.core.stream_key import StreamKey
from halt.errors import UnknownStream
from halt.web.services import services
from tests.support.scripted_upstream import ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT

#: Events on the pipe: number and canonical JSON of each.
EventRows = list[tuple[int, str]]

_encode = msgspec.json.Encoder().encode
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class Process:
    """A worker process, in the test: calls the methods of its Worker."""

    def __init__(self, folder: str) -> None:
        self._pipe, worker_end = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(worker_end, folder), daemon=True)
        self._process.start()
        worker_end.close()
        assert self._received() == "ready"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: object) -> Any:
            self._pipe.send((name, args))
            fault, value = self._received()
            assert not fault, fault
            return value

        return call

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.join(WAIT_TIMEOUT)
        self._process.close()
        self._pipe.close()

    def _received(self) -> Any:
        assert self._pipe.poll(2 * WAIT_TIMEOUT), "the worker does not answer"
        return self._pipe.recv()


def _serve(pipe: Connection, folder: str) -> None:
    worker = Worker(folder)
    pipe.send("ready")
    while True:
        name, args = pipe.recv()
        try:
            answer = ("", getattr(worker, name)(*args))
        except Exception:  # noqa: BLE001 - sent to the test
            answer = (traceback.format_exc(), None)
        pipe.send(answer)


class RepliesByStream(ScriptedUpstream):
    """An upstream with one reply for each stream, found by the stream's ID."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._replies: dict[str, ScriptedReply] = {}

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> ScriptedReply:
        reply = super().open(request, connection)
        with self._changed:
            self._replies[request.id or ""] = reply
            self._changed.notify_all()
        return reply

    def reply_of(self, stream_id: str) -> ScriptedReply:
        """Wait for the reply to this stream."""
        with self._changed:
            assert self._changed.wait_for(lambda: stream_id in self._replies, WAIT_TIMEOUT)
            return self._replies[stream_id]


class Follower(threading.Thread):
    """A reader that follows a generation to its end."""

    def __init__(self, generation: Generation, after: int) -> None:
        super().__init__(daemon=True)
        self.events: EventRows = []
        self.ended = threading.Event()
        self._generation = generation
        self._after = after
        self._viewer = generation.join()
        self.start()

    def run(self) -> None:
        for group in self._generation.follow(self._after, self._viewer):
            self.events += event_rows(group)
        self.leave()
        self.ended.set()

    def leave(self) -> None:
        """Stop being a viewer of the generation."""
        self._generation.leave(self._viewer)


def event_rows(events: list[tuple[int, Event]]) -> EventRows:
    return [(number, _encode(event).decode()) for number, event in events]


class Worker:
    """The methods that a test calls in the process."""

    def __init__(self, folder: str) -> None:
        config = Config(
            data=folder,
            base_url="http://scripted/v1",
            secret_key="of no importance",
            titles="words",
        )
        self.upstream = RepliesByStream()
        app = create_app(config, upstream=self.upstream)
        self.store: Any = services(app).store
        self.store_writer = services(app).store_writer
        self.service = services(app).generations
        self.service.begin()
        self.followers: dict[int, Follower] = {}

    def start(self, stream_id: str, owner: str, conversation_id: str) -> None:
        """Start a stream of this conversation, or without a conversation ("")."""
        messages = [Message("user", "a question")]
        if conversation_id:
            self.store.turns.add_prompt(
                conversation_id,
                owner,
                "a question",
                [(stream_id, "")],
                worker=self.store_writer.worker,
            )
            messages = self.store.conversations.prompt_path(conversation_id, owner).messages()
        self.service.start(ChatRequest(messages, id=stream_id), owner, noted=bool(conversation_id))

    def feed(self, stream_id: str, owner: str, text: str) -> None:
        """Send this text from the model; return when it is in the log."""
        run = self.service.run(StreamKey(owner, stream_id))
        last = run.log.last
        self.upstream.reply_of(stream_id).feed(text)
        while run.log.last <= last:  # the wait may end for another reason
            run.log.wait(last, WAIT_TIMEOUT)

    def finish(self, stream_id: str, owner: str) -> None:
        """End the model's answer; return when the end is in the log."""
        run = self.service.run(StreamKey(owner, stream_id))
        self.upstream.reply_of(stream_id).end()
        while run.log.ended is None:
            run.log.wait(run.log.last, WAIT_TIMEOUT)

    def stop(self, stream_id: str, owner: str, seen: int | None) -> str:
        """Stop the stream; the receipt's status, repeated while the store does not answer in time."""
        while (receipt := self.service.stop(StreamKey(owner, stream_id), seen)).note:
            pass
        return str(receipt.status)

    def read(self, stream_id: str, owner: str, after: int) -> EventRows | None:
        """The events so far after this number; None if the stream is unknown."""
        try:
            generation = self.service.get(StreamKey(owner, stream_id))
        except UnknownStream:
            return None
        return event_rows(generation.log.read(after))

    def follow(self, number: int, stream_id: str, owner: str, after: int) -> None:
        """Start a reader of the stream."""
        self.followers[number] = Follower(self.service.get(StreamKey(owner, stream_id)), after)

    def events_of(self, number: int, to_end: bool) -> tuple[EventRows, bool]:
        """The events of a reader so far, and whether its stream is over."""
        follower = self.followers[number]
        if to_end:
            follower.ended.wait(1.5 * WAIT_TIMEOUT)  # longer than readers of an unsaved stream wait
        # Read before the events, so that the end implies all of them.
        is_over = follower.ended.is_set()
        return list(follower.events), is_over

    def leave(self, number: int) -> None:
        """End a reader."""
        self.followers.pop(number).leave()

    def answers(self, conversation_id: str, owner: str) -> list[tuple[str, str, str]]:
        """Stream, state and text of each answer of a conversation."""
        exchanges = self.store.conversations.get(conversation_id, owner).exchanges
        return [(exchange.stream_id, exchange.state, exchange.answer) for exchange in exchanges]

    def prompt_messages(self, conversation_id: str, owner: str) -> list[tuple[str, str]]:
        """Role and content of the messages that a model would get."""
        return [
            (message.role, message.content)
            for message in self.store.conversations.prompt_path(conversation_id, owner).messages()
        ]

"""The chat page: whole pages, the fragments that change it, and its stream of HTML.

One template, `answer.html`, draws an answer in every state; each route that changes an answer
returns it. While an answer runs, the page follows `GET /streams/ID/page`: each message is a set of
`<hx-partial>` that append what is new, and the last one replaces the whole answer.
"""

from __future__ import annotations

import html
import re
import secrets
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from flask import Blueprint, Response, abort, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import HaltError, OffsetLost, RequestError, TooLarge, UnknownStream
from halt.events import Cancelled, Content, Done, Event, Failed, Terminal, sse_html
from halt.generation import Generations, Receipt
from halt.metrics import now
from halt.relay import SSE_HEADERS, EventStream
from halt.rendering import BlockStream, Patch, render
from halt.run import Run
from halt.store import Conversation, Exchange, MemoryStore
from halt.upstream import ChatRequest
from halt.web import (
    after_parameter,
    client_socket,
    config,
    generations,
    login_mark,
    owner,
    owner_made,
    token_matches,
)

#: Seconds between two messages to the page: about a frame of a 60 Hz screen. A page that swaps
#: more often only falls behind; the first message is never held back.
FRAME_INTERVAL = 0.016

#: Streams that one browser session may hold open. A browser has six connections to a host for all
#: its tabs, and a Stop needs one of them. Further tabs get what is there and come back for more,
#: about twice a second, which the page's stream reader does by itself.
LIVE_PER_SESSION = 4

CONVERSATION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Store(Protocol):
    """What the page needs of the store of conversations."""

    def get(self, conversation_id: str, owner: str) -> Conversation: ...
    def begin(
        self, conversation_id: str, owner: str, prompt: str, stream_id: str
    ) -> Conversation: ...
    def again(self, conversation_id: str, owner: str, stream_id: str) -> Conversation: ...
    def finish(
        self, conversation_id: str, stream_id: str, answer: str, model: str, ended: Terminal
    ) -> None: ...
    def take_back(self, conversation_id: str, stream_id: str) -> None: ...


# --- what an answer looks like --------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerView:
    """Everything that `answer.html` shows of an answer."""

    id: str
    state: str  # running, done, stopped, withdrawn, error
    patch: Patch  # what there is: finished blocks and the open tail
    source: str = ""
    after: int = 0  # the event up to which `patch` shows the answer
    age: float = 0.0  # seconds since the run began
    prompt: str = ""
    again: bool = False  # it is to replace an earlier answer
    model: str = ""
    note: str = ""
    retryable: bool = False
    figures: tuple[str, ...] = ()


def _seconds(milliseconds: float) -> str:
    return (
        f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
    )


def _figures(ended: Terminal, model: str) -> tuple[str, ...]:
    m = ended.metrics
    out = []
    if m.ttft_ms is not None:
        out.append(f"first token after {_seconds(m.ttft_ms)}")
    if m.tokens_per_second is not None:
        out.append(f"{m.tokens_per_second:.0f} tokens/s")
    count = f"{m.tokens:,} token{'' if m.tokens == 1 else 's'}"
    out.append(f"about {count} (estimated)" if m.tokens_estimated else count)
    out.append(f"{_seconds(m.duration_ms)} in all")
    if isinstance(ended, Done):
        out.append(f"finish reason: {ended.finish_reason or 'none given'}")
    if model:
        out.append(model)
    return tuple(out)


def _whole(text: str) -> Patch:
    return Patch(finished=render(text), fresh=True, tail="", form="text")


def _ended_view(exchange: Exchange, ended: Terminal) -> AnswerView:
    view = {
        "id": exchange.stream_id,
        "source": exchange.answer,
        "model": exchange.model,
        "prompt": exchange.prompt,
        "figures": _figures(ended, exchange.model),
    }
    patch = _whole(exchange.answer)
    if isinstance(ended, Failed):
        return AnswerView(
            state="error",
            patch=patch,
            note=ended.error.message,
            retryable=ended.error.retryable,
            **view,  # type: ignore[arg-type]
        )
    if isinstance(ended, Cancelled):
        note = "Stopped" if ended.reason == "stop" else "Stopped, as nobody was watching"
        state = "stopped" if exchange.answer else "withdrawn"
        return AnswerView(state=state, patch=patch, note=note, **view)  # type: ignore[arg-type]
    note = "Cut off at the token limit" if ended.finish_reason == "length" else ""
    return AnswerView(state="done", patch=patch, note=note, **view)  # type: ignore[arg-type]


def _view(exchange: Exchange, run: Run | None) -> AnswerView:
    """An answer as it is now: from its run as long as that is known, else as it was saved."""
    if exchange.ended is not None:
        return _ended_view(exchange, exchange.ended)
    if run is None:
        return AnswerView(
            id=exchange.stream_id,
            state="error",
            patch=_whole(exchange.answer),
            prompt=exchange.prompt,
            note="This answer was lost.",
            retryable=True,
        )
    ended = run.log.ended
    after, text = run.answer()
    if ended is not None:
        saved = Exchange(exchange.prompt, run.id, text, run.model, ended)
        return _ended_view(saved, ended)
    return AnswerView(
        id=run.id,
        state="running",
        patch=BlockStream().feed(text),
        after=after,
        age=now() - run.meter.started_at,
        prompt=exchange.prompt,
        again=exchange.previous is not None,
    )


def _partial(target: str, swap: str, content: str) -> str:
    return f'<hx-partial hx-target="#{target}" hx-swap="{swap}">{content}</hx-partial>'


class PageWriter:
    """A run's events as messages to the page. Each reader has one; the log holds no HTML."""

    def __init__(self, run: Run, after: int) -> None:
        self._run = run
        self._blocks = BlockStream()
        self._blocks.feed(run.text(after), render=False)

    def present(self, events: list[tuple[int, Event]]) -> bytes:
        seq, last = events[-1]
        if not isinstance(last, Content):
            return sse_html(seq, self.whole())
        patch = self._blocks.feed("".join(e.content for _, e in events))
        return sse_html(seq, self._changes(patch))

    def whole(self) -> str:
        """The answer as it is now, in place of what the page shows of it."""
        view = _view(Exchange("", self._run.id), self._run)
        return _partial(f"a-{self._run.id}", "outerHTML", render_template("answer.html", a=view))

    def _changes(self, patch: Patch) -> str:
        stream_id = self._run.id
        out = []
        if patch.finished:
            out.append(_partial(f"done-{stream_id}", "beforeend", patch.finished))
        if patch.fresh:
            tail = f'<div class="tail {patch.form}" id="tail-{stream_id}">{patch.tail}</div>'
            out.append(_partial(f"tail-{stream_id}", "outerHTML", tail))
        elif patch.tail:
            out.append(_partial(f"tail-{stream_id}", "beforeend", patch.tail))
        return "".join(out)


# --- routes ---------------------------------------------------------------------------------------


def blueprint(store: Store) -> Blueprint:
    """The page's routes."""
    routes = Blueprint("pages", __name__)
    live: Counter[str] = Counter()  # open page streams of each session
    live_lock = threading.Lock()  # protects it

    def page(conversation_id: str, conversation: Conversation | None) -> str:
        service = generations()
        answers = []
        for exchange in conversation.exchanges if conversation else ():
            answers.append(_view(exchange, _run_of(service, exchange.stream_id)))
        return render_template(
            "chat.html",
            conversation_id=conversation_id,
            answers=answers,
            config=config(),
            model=_shown_model(service),
        )

    @routes.get("/")
    def index() -> str:
        owner_made()
        return page(secrets.token_urlsafe(16), None)

    @routes.get("/c/<conversation_id>")
    def conversation(conversation_id: str) -> str:
        return page(conversation_id, store.get(conversation_id, owner_made()))

    @routes.post("/c/<conversation_id>/messages")
    def send(conversation_id: str) -> Response:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            abort(404)
        prompt = request.form.get("prompt", "").replace("\r\n", "\n").strip()
        if not prompt:
            raise RequestError("Write a message first.", field="prompt")
        if len(prompt) > config().max_prompt_chars:
            raise TooLarge(
                f"The message is longer than {config().max_prompt_chars:,} characters.",
                field="prompt",
            )
        stream_id = _stream_id()
        found = store.begin(conversation_id, owner_made(), prompt, stream_id)
        view = begin(found, stream_id)
        response = Response(render_template("exchange.html", a=view), mimetype="text/html")
        response.headers["HX-Push-Url"] = url_for("pages.conversation", conversation_id=found.id)
        return response

    @routes.post("/c/<conversation_id>/regenerate")
    def regenerate(conversation_id: str) -> str:
        stream_id = _stream_id()
        found = store.again(conversation_id, owner_made(), stream_id)
        return render_template("answer.html", a=begin(found, stream_id))

    def begin(found: Conversation, stream_id: str) -> AnswerView:
        """Start the stream that answers the conversation's last prompt."""

        def save(run: Run) -> None:
            ended = run.log.ended
            if ended is not None:
                store.finish(found.id, run.id, run.answer()[1], run.model, ended)

        chat = ChatRequest(found.messages(config().system_prompt), id=stream_id)
        try:
            run = generations().start(chat, found.owner, save)
        except HaltError:
            store.take_back(found.id, stream_id)
            raise
        return _view(found.exchanges[-1], run)

    @routes.get("/streams/<stream_id>/page")
    def stream(stream_id: str) -> Response:
        requester = owner()
        try:
            run = generations().get(stream_id, requester)
        except UnknownStream:
            return _one_message(_lost(stream_id))
        after = min(after_parameter(), run.log.last)
        writer = PageWriter(run, after)
        session_id = requester or ""
        with live_lock:
            live[session_id] += 1
            brief = live[session_id] > LIVE_PER_SESSION

        def closed() -> None:
            with live_lock:
                live[session_id] -= 1
                if not live[session_id]:
                    del live[session_id]

        try:
            body = EventStream(
                generations(),
                run,
                client_socket(),
                after,
                writer.present,
                interval=FRAME_INTERVAL,
                brief=brief,
                on_close=closed,
            )
        except OffsetLost:
            closed()
            return _one_message(writer.whole())
        except HaltError:
            closed()
            raise
        return Response(
            body,  # type: ignore[arg-type]  # a WSGI body with __iter__ and close
            headers=SSE_HEADERS,
            direct_passthrough=True,
        )

    @routes.route("/login", methods=["GET", "POST"])
    def login() -> BaseResponse | tuple[str, int] | str:
        if not config().token:
            return redirect(url_for("pages.index"))
        if request.method == "POST":
            if token_matches(request.form.get("token", "").strip()):
                session["login"] = login_mark()
                owner_made()
                return redirect(url_for("pages.index"))
            return render_template("login.html", wrong=True), 401
        return render_template("login.html", wrong=False)

    return routes


def stop_fragment(receipt: Receipt) -> str:
    """What the page shows after a Stop: the answer as it was stopped."""
    try:
        run = generations().get(receipt.id, owner())
    except UnknownStream:
        return ""  # it has not begun; its own response will say that it was stopped
    return PageWriter(run, 0).whole()


def _run_of(service: Generations, stream_id: str) -> Run | None:
    try:
        return service.get(stream_id, owner())
    except UnknownStream:
        return None


def _stream_id() -> str:
    given = request.form.get("id", "")
    if given and not CONVERSATION_ID.fullmatch(given):
        raise RequestError("id must be 8 to 64 characters of A-Z, a-z, 0-9, _ and -.", field="id")
    return given or secrets.token_urlsafe(16)


def _shown_model(service: Generations) -> str:
    return getattr(service.upstream, "known_model", "")


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)


def _lost(stream_id: str) -> str:
    """The page follows a stream that is not known (any more): say so, keep the text, ask no more."""
    target = html.escape(stream_id)
    note = (
        '<p class="note" role="status">The server no longer has this answer: it was restarted, '
        "or too much time has passed. What is shown above is all there is.</p>"
    )
    return _partial(f"feed-{target}", "outerHTML", note)

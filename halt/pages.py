"""The chat page: whole pages, the fragments that change it, and its stream of HTML.

One template, `answer.html`, draws an answer in every state; each route that changes an answer
returns it. While an answer runs, the page follows `GET /streams/ID/page`: each message is a set of
`<hx-partial>` that append what is new, and the last one replaces the whole answer.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from typing import Protocol

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from jinja2 import Template
from werkzeug.wrappers import Response as BaseResponse

from halt.answers import AnswerView, PageWriter, ended_folds, lost, view
from halt.chat import ChatRequest
from halt.errors import HaltError, OffsetLost, RequestError, TooLarge, UnknownStream
from halt.events import Terminal, sse_html
from halt.folds import Fold
from halt.generation import Generations, Receipt
from halt.relay import SSE_HEADERS, EventStream
from halt.run import Run
from halt.store import Conversation
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


blueprint = Blueprint("pages", __name__)


class Store(Protocol):
    """What the page needs of the store of conversations."""

    def get(self, conversation_id: str, owner: str) -> Conversation: ...
    def begin(
        self, conversation_id: str, owner: str, prompt: str, stream_id: str
    ) -> Conversation: ...
    def again(self, conversation_id: str, owner: str, stream_id: str) -> Conversation: ...
    def finish(
        self,
        conversation_id: str,
        stream_id: str,
        answer: str,
        model: str,
        ended: Terminal,
        folds: tuple[Fold, ...] = (),
    ) -> None: ...
    def take_back(self, conversation_id: str, stream_id: str) -> None: ...


class Tabs:
    """How many page streams each browser session holds open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects the counter
        self._open: Counter[str] = Counter()

    def opened(self, session_id: str) -> bool:
        """Count one more. True: the session has enough, and this one is to be brief."""
        with self._lock:
            self._open[session_id] += 1
            return self._open[session_id] > LIVE_PER_SESSION

    def closed(self, session_id: str) -> None:
        """Count one less; to be called once for each `opened`."""
        with self._lock:
            self._open[session_id] -= 1
            if not self._open[session_id]:
                del self._open[session_id]


def install(app: Flask, store: Store) -> None:
    """Put the page into the application."""
    app.extensions["halt.store"] = store
    app.extensions["halt.tabs"] = Tabs()
    app.register_blueprint(blueprint)


def _store() -> Store:
    found: Store = current_app.extensions["halt.store"]
    return found


def _page(conversation_id: str, conversation: Conversation | None) -> str:
    service = generations()
    exchanges = conversation.exchanges if conversation else ()
    answers = [view(each, _run_of(service, each.stream_id)) for each in exchanges]
    return render_template(
        "chat.html",
        conversation_id=conversation_id,
        answers=answers,
        config=config(),
        model=_shown_model(service),
    )


@blueprint.get("/")
def index() -> str:
    owner_made()
    return _page(secrets.token_urlsafe(16), None)


@blueprint.get("/c/<conversation_id>")
def conversation(conversation_id: str) -> str:
    return _page(conversation_id, _store().get(conversation_id, owner_made()))


@blueprint.post("/c/<conversation_id>/messages")
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
    found = _store().begin(conversation_id, owner_made(), prompt, stream_id)
    shown = _begin(found, stream_id)
    response = Response(
        render_template("exchange.html", a=shown, conversation_id=found.id), mimetype="text/html"
    )
    response.headers["HX-Push-Url"] = url_for("pages.conversation", conversation_id=found.id)
    return response


@blueprint.post("/c/<conversation_id>/regenerate")
def regenerate(conversation_id: str) -> str:
    stream_id = _stream_id()
    found = _store().again(conversation_id, owner_made(), stream_id)
    return render_template("answer.html", a=_begin(found, stream_id))


def _begin(found: Conversation, stream_id: str) -> AnswerView:
    """Start the stream that answers the conversation's last prompt."""
    store = _store()

    def save(run: Run) -> None:
        ended = run.log.ended
        if ended is not None:
            answer = run.answer()[1]
            store.finish(found.id, run.id, answer, run.model, ended, ended_folds(run))

    chat = ChatRequest(found.messages(config().told_system_prompt), id=stream_id)
    try:
        run = generations().start(chat, found.owner, save)
    except HaltError:
        store.take_back(found.id, stream_id)
        raise
    return view(found.exchanges[-1], run)


@blueprint.get("/streams/<stream_id>/page")
def stream(stream_id: str) -> Response:
    requester = owner()
    try:
        run = generations().get(stream_id, requester)
    except UnknownStream:
        return _one_message(lost(stream_id))
    # The last event is sent again to a page that has it: without it the page would ask for ever.
    after = min(after_parameter(), run.log.last - (run.log.ended is not None))
    writer = PageWriter(run, after, _answer_template())
    session_id = requester or ""
    tabs: Tabs = current_app.extensions["halt.tabs"]
    brief = tabs.opened(session_id)

    def closed() -> None:
        tabs.closed(session_id)

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
        body,
        headers=SSE_HEADERS,
        direct_passthrough=True,
    )


@blueprint.route("/login", methods=["GET", "POST"])
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


def stop_fragment(receipt: Receipt) -> str:
    """What the page shows after a Stop: the answer as it was stopped."""
    try:
        run = generations().get(receipt.id, owner())
    except UnknownStream:
        return ""  # it has not begun; its own response will say that it was stopped
    return PageWriter(run, 0, _answer_template()).whole()


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


def _answer_template() -> Template:
    return current_app.jinja_env.get_template("answer.html")


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)

"""The chat page: whole pages, the fragments that change it, and its stream of HTML.

One template, `answer.html`, draws an answer in every state; each route that changes an answer
returns it. While an answer runs, the page follows `GET /streams/ID/page`: each message is a set of
`<hx-partial>` that append what is new, and the last one replaces the whole answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
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

from halt.answers import ExchangeView, PageWriter, ended_folds, exchange_view, lost, view
from halt.bodies import checked_id, is_id
from halt.catalog import Catalog, checked_model
from halt.chat import ChatRequest
from halt.errors import HaltError, OffsetLost, RequestError, TooLarge, UnknownStream
from halt.events import Done, Terminal, sse_html
from halt.folds import Fold
from halt.generation import Generations, Receipt
from halt.lengths import Lengths
from halt.rates import count_starts
from halt.recording import Recording
from halt.relay import SSE_HEADERS, EventStream
from halt.run import Run
from halt.slots import number_of
from halt.store import Conversation, Exchange
from halt.web import (
    after_parameter,
    client_socket,
    config,
    generations,
    login_mark,
    owner,
    owner_made,
    token_matches,
    toolbox,
)

#: Seconds between two messages to the page: about a frame of a 60 Hz screen. A page that swaps
#: more often only falls behind; the first message is never held back.
FRAME_INTERVAL = 0.016

#: Streams that one browser session may hold open. A browser has six connections to a host for all
#: its tabs, and a Stop needs one of them. Further tabs get what is there and come back for more,
#: about twice a second, which the page's stream reader does by itself.
LIVE_PER_SESSION = 4

#: Seconds that a prompt's response waits for a model that answers at once: its first text comes
#: with its place, and not a request later.
FIRST_TEXT_WAIT = 0.01

blueprint = Blueprint("pages", __name__)


class Store(Protocol):
    """What the page needs of the store of conversations."""

    def get(self, conversation_id: str, owner: str) -> Conversation: ...
    def begin(
        self,
        conversation_id: str,
        owner: str,
        prompt: str,
        stream_id: str,
        model: str = "",
        rivals: Sequence[tuple[str, str]] = (),
    ) -> Conversation: ...
    def again(
        self, conversation_id: str, owner: str, stream_id: str, model: str = ""
    ) -> Conversation: ...
    def pick(self, conversation_id: str, owner: str, stream_id: str) -> Conversation: ...
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


def install(app: Flask, store: Store) -> None:
    """Put the page into the application."""
    app.extensions["halt.store"] = store
    app.extensions["halt.lengths"] = Lengths()
    app.extensions["halt.catalog"] = Catalog(app.extensions["halt"].upstream)
    app.register_blueprint(blueprint)


def _store() -> Store:
    found: Store = current_app.extensions["halt.store"]
    return found


def _lengths() -> Lengths:
    found: Lengths = current_app.extensions["halt.lengths"]
    return found


def _page(conversation_id: str, conversation: Conversation | None) -> str:
    exchanges = conversation.exchanges if conversation else []
    return render_template(
        "chat.html",
        conversation_id=conversation_id,
        exchanges=[_shown(each, last=each is exchanges[-1]) for each in exchanges],
        config=config(),
        chosen=conversation.model if conversation else None,
        model=_shown_model(generations()),
    )


def _shown(exchange: Exchange, *, last: bool = True) -> ExchangeView:
    return exchange_view(exchange, _run_of, _lengths(), last=last)


@blueprint.get("/")
def index() -> str:
    owner_made()
    return _page(secrets.token_urlsafe(16), None)


@blueprint.get("/c/<conversation_id>")
def conversation(conversation_id: str) -> str:
    return _page(conversation_id, _store().get(conversation_id, owner_made()))


@blueprint.post("/c/<conversation_id>/messages")
def send(conversation_id: str) -> Response:
    if not is_id(conversation_id):
        abort(404)
    prompt = request.form.get("prompt", "").replace("\r\n", "\n").strip()
    if not prompt:
        raise RequestError("Write a message first.", field="prompt")
    if len(prompt) > config().max_prompt_chars:
        raise TooLarge(
            f"The message is longer than {config().max_prompt_chars:,} characters.",
            field="prompt",
        )
    models = [checked_model(each) for each in request.form.getlist("model")] or [""]
    if len(models) > LIVE_PER_SESSION:
        raise RequestError(f"At most {LIVE_PER_SESSION} models can be compared.", field="model")
    first, *rivals = zip(_stream_ids(len(models)), models, strict=True)
    found = _store().begin(conversation_id, owner_made(), prompt, *first, rivals=rivals)
    _begin(found)
    response = Response(_exchange(found), mimetype="text/html")
    response.headers["HX-Push-Url"] = url_for("pages.conversation", conversation_id=found.id)
    return response


@blueprint.post("/c/<conversation_id>/regenerate")
def regenerate(conversation_id: str) -> str:
    (stream_id,) = _stream_ids(1)
    model = checked_model(request.form.get("model", ""))
    found = _store().again(conversation_id, owner_made(), stream_id, model)
    run = _begin(found)
    shown = view(found.exchanges[-1], run, _lengths())
    return render_template("answer.html", a=shown)


@blueprint.post("/c/<conversation_id>/pick")
def pick(conversation_id: str) -> str:
    """Go on with one of several answers; those that are still being written are stopped."""
    mine = owner_made()
    chosen = request.form.get("stream_id", "")
    last = _store().get(conversation_id, mine).exchanges[-1:]
    candidates = last[0].candidates if last and last[0].rivals else ()
    if any(each.stream_id == chosen for each in candidates):
        for each in candidates:
            if each.ended is None:
                generations().stop(each.stream_id, mine)
    return _exchange(_store().pick(conversation_id, mine, chosen))


@blueprint.get("/models")
def models() -> str:
    """What can be chosen, as options; the one that is chosen stays so where it is still offered."""
    catalog: Catalog = current_app.extensions["halt.catalog"]
    return render_template(
        "models.html",
        groups=catalog.look(),
        chosen=checked_model(request.args.get("model", "")),
        model=_shown_model(generations()),
    )


def _exchange(found: Conversation) -> str:
    return render_template("exchange.html", x=_shown(found.exchanges[-1]), conversation_id=found.id)


def _begin(found: Conversation) -> Run:
    """Start what answers the conversation's last prompt: all of it or nothing.

    Returns the first answer's run.
    """
    store, lengths = _store(), _lengths()
    exchange = found.exchanges[-1]
    messages = found.messages(config().told_system_prompt)

    def started(wanted: Exchange) -> Run:
        def save(run: Run) -> None:
            ended = run.log.ended
            if ended is None:
                return
            whole = isinstance(ended, Done) and ended.finish_reason == "stop"
            lengths.end(run.id, wanted.asked, ended.metrics.tokens if whole else None)
            answer = run.answer()[1]
            store.finish(found.id, run.id, answer, run.model, ended, ended_folds(run))

        expected = lengths.begin(wanted.stream_id, wanted.asked)
        try:
            chat = ChatRequest(messages, id=wanted.stream_id, model=wanted.asked or None)
            run = generations().start(chat, found.owner, save, toolbox())
            run.expected = expected
            return run
        except HaltError:
            lengths.end(wanted.stream_id, wanted.asked)
            raise

    waiting = [each for each in exchange.candidates if each.ended is None]
    runs: list[Run] = []
    try:
        count_starts(len(waiting))
        for each in waiting:
            runs.append(started(each))  # noqa: PERF401 - those before a fault are to be stopped
    except HaltError:
        store.take_back(found.id, exchange.stream_id)
        for run in runs:
            generations().stop(run.id, found.owner)
        raise
    runs[0].log.wait(0, FIRST_TEXT_WAIT)
    return runs[0]


@blueprint.get("/streams/<stream_id>/page")
def stream(stream_id: str) -> Response:
    requester = owner()
    try:
        run = generations().get(stream_id, requester)
    except UnknownStream:
        return _one_message(lost(stream_id))
    # The last event is sent again to a page that has it: without it the page would ask for ever.
    after = min(after_parameter(), run.log.last - (run.log.ended is not None))
    writer = PageWriter(run, after, _answer_template(), _lengths())
    tabs = generations().tabs
    place = tabs.take(LIVE_PER_SESSION, number_of(requester or "", LIVE_PER_SESSION))

    def closed() -> None:
        if place is not None:
            tabs.give_back(place)

    try:
        body = EventStream(
            generations(),
            run,
            client_socket(),
            after,
            writer.present,
            interval=FRAME_INTERVAL,
            brief=place is None,
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
        if request.form.get("shown"):  # of another session, or no longer kept
            return lost(receipt.id)
        return ""  # it has not begun; its own response will say that it was stopped
    return PageWriter(run, 0, _answer_template(), _lengths()).whole()


def _run_of(stream_id: str) -> Recording | None:
    try:
        return generations().get(stream_id, owner())
    except UnknownStream:
        return None


def _stream_ids(count: int) -> list[str]:
    """The streams' IDs: those that the page has chosen, made up where it has not."""
    given = [checked_id(each, "id") for each in request.form.getlist("id") if each]
    return (given + [secrets.token_urlsafe(16) for _ in range(count)])[:count]


def _shown_model(service: Generations) -> str:
    return getattr(service.upstream, "known_model", "")


def _answer_template() -> Template:
    return current_app.jinja_env.get_template("answer.html")


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)

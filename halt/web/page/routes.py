"""The chat page: whole pages, the fragments that change it, and its stream of HTML.

One template, `answer.html`, draws an answer in every state. A route that changes the conversation
at one of its exchanges returns that exchange and all that follow, since an edited prompt or another
version leads to another rest.

While an answer runs, the page reads a stream: each message is a set of `<hx-partial>` that append
what is new, and the last one replaces the whole answer. The POST that asks for the answer is
responded to with this stream, whose first message is what the POST changes (the exchange, or the
answer). Where that stream breaks off, after a reload, and for answers side by side, the page
follows `GET /streams/ID/page`, which starts nothing.
"""

from __future__ import annotations

import contextlib
import html
import secrets
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from jinja2 import Template
from werkzeug.wrappers import Response as BaseResponse

from halt.chat.figures import used
from halt.clock import now
from halt.core.connection import limited
from halt.core.decoding import checked_id, is_id, is_number
from halt.core.events import Done, sse_html
from halt.core.generation import Recording
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest, Message, go_on
from halt.core.run import Run
from halt.core.slots import number_of
from halt.errors import (
    AtCapacity,
    HaltError,
    Interrupted,
    OffsetLost,
    RequestError,
    StoreUnavailable,
    TooLarge,
    UnknownStream,
    UpstreamError,
)
from halt.providers.catalog import checked_model
from halt.rendering.renderer import TEXT_WAIT, Rendering
from halt.store.conversation import (
    MOVED,
    Busy,
    Conversation,
    Exchange,
    Moved,
    Store,
    UnknownConversation,
)
from halt.web.access import count_wrong_token, login_mark, token_matches
from halt.web.event_stream import SSE_HEADERS, EventStream
from halt.web.page.answers import (
    AnswerView,
    ExchangeView,
    PageWriter,
    exchange_view,
    lost,
    view,
)
from halt.web.page.ended_html import whole
from halt.web.requests import after_parameter, client_socket, sent_without_scripts
from halt.web.services import services
from halt.web.sessions import owner, owner_made
from halt.web.starts import count_starts
from halt.web.token_failures import too_many

#: Seconds between two messages to the page: about a frame of a 60 Hz screen. A page that swaps
#: more often only falls behind; the first message is never held back.
FRAME_INTERVAL = 0.016

#: Page streams that one session may hold open over HTTP/1.1, where a browser has six connections
#: to a host for all its tabs, and a Stop needs one of them. A further stream ends after the events
#: that are there, and the page's stream reader asks again, about twice a second.
LIVE_PER_SESSION = 4

#: The request header in which the page tells by which protocol its browser has loaded it: an ALPN
#: protocol ID, or nothing where the browser does not know. Only the browser sees it; a proxy speaks
#: HTTP/1.1 to Halt whatever it speaks outside.
PROTOCOL_HEADER = "Halt-Protocol"
#: Protocols that carry all of a browser's streams in one connection. HALT_MAX_STREAMS alone bounds
#: the streams of a page that was loaded by one of them.
MULTIPLEXED = frozenset({"h2", "h3"})

#: Models that one prompt may be sent to; the page shows their answers side by side.
COMPARED_MODELS = 4

#: Seconds that a POST waits for the first event before it draws its response: meanwhile the thread
#: that sends the request to the model's server has the interpreter to itself. Drawing at once makes
#: that request 10 to 25 ms later on a busy machine with two cores, and the first text 6 to 20 ms.
OPENING_WAIT = 0.01

#: Seconds that a page waits for the demo model to say whether it is loaded.
DEMO_WAIT = 0.5

#: Seconds that a Stop waits for the colours of what it shows.
STOP_WAIT = 0.2

#: Seconds that a request waits for an answer that has ended to be written down.
WRITE_WAIT = 2.0
WRITE_TICK = 0.01  # seconds before the first further look whether it is; each waits twice as long
WRITE_TICK_MAX = 0.16

blueprint = Blueprint("pages", __name__)


def _rendering() -> Rendering:
    """Renders what this request shows: all of it by one deadline."""
    if "rendering" not in g:
        g.rendering = services().renderer.within(TEXT_WAIT)
    found: Rendering = g.rendering
    return found


# --- whole pages ----------------------------------------------------------------------------------


def _page(conversation_id: str, conversation: Conversation | None) -> str:
    own = conversation.settings.system_prompt if conversation else None
    chosen = conversation.model if conversation else None
    return render_template(
        "chat.html",
        conversation_id=conversation_id,
        title=conversation.title if conversation else "",
        system_prompt=services().told_system_prompt(chosen) if own is None else own,
        **_window(conversation),
        used=used(conversation.usage) if conversation else "",
        config=services().config,
        chosen=chosen,
        catalog=services().catalog,
        model=services().generations.upstream.known_model,
        loading=_demo_is_loading(),
    )


def _demo_is_loading() -> bool:
    """Whether the demo model does not answer yet. Once it has, it is not asked again."""
    ready = services().demo_ready
    if not services().config.has_demo or ready.is_set():
        return False
    try:
        with limited(DEMO_WAIT) as line:
            services().generations.upstream.check(line)
    except UpstreamError as fault:
        if fault.code in {"model_loading", "upstream_refused"}:
            return True
    except Interrupted:
        return True
    ready.set()
    return False


def _window(found: Conversation | None, side: str = "") -> dict[str, Any]:
    """What `window.html` shows: exchanges, and what is before and after them, or on one side."""
    return {
        "exchanges": _all_shown(found) if found else [],
        "earlier": found.first if found and found.has_earlier and side != "after" else None,
        "later": found.last if found and found.has_later and side != "before" else None,
    }


def _all_shown(found: Conversation, first: int = 0) -> list[ExchangeView]:
    """The exchanges of the window, from its `first` one on."""
    out = []
    for each in found.exchanges[first:]:
        last = each is found.exchanges[-1] and not found.has_later
        shown = _shown(each, last=last)
        if shown.withdrawn:  # just now: the store will know in a moment
            if each.previous is None:
                continue
            shown = _shown(each.previous, last=last)
        out.append(shown)
    return out


def _shown(exchange: Exchange, *, last: bool = True) -> ExchangeView:
    return exchange_view(exchange, _run_of, services().lengths, _rendering(), last=last)


@blueprint.get("/")
def index() -> str:
    owner_made()
    return _page(secrets.token_urlsafe(16), None)


@blueprint.get("/demo")
def demo() -> str:
    """Asked by a page that was told that the demo model is being loaded, until it is."""
    return render_template("demo.html", loading=_demo_is_loading(), catalog=services().catalog)


@blueprint.get("/c/<conversation_id>")
def conversation(conversation_id: str) -> str:
    """The end of a conversation; with `at`, the part around a message of any version."""
    mine, at = owner_made(), request.args.get("at", "")
    if not is_number(at):
        return _page(conversation_id, services().store.get(conversation_id, mine))
    found = services().store.get(conversation_id, mine, around=int(at))
    if not _holds(found, int(at)):
        with contextlib.suppress(HaltError):  # then its end is shown
            found = services().store.show(conversation_id, mine, int(at))
    return _page(conversation_id, found)


@blueprint.get("/c/<conversation_id>/exchanges")
def exchanges(conversation_id: str) -> Response:
    """The part of a conversation before, or after, a prompt that the page shows."""
    side = "before" if "before" in request.args else "after"
    place = _message_id(side)
    before, after = (place, None) if side == "before" else (None, place)
    found = services().store.get(conversation_id, owner() or "", before=before, after=after)
    response = Response(
        render_template("window.html", conversation_id=conversation_id, **_window(found, side)),
        mimetype="text/html",
    )
    if not (found.has_later if side == "before" else found.has_earlier):
        response.headers["HX-Refresh"] = "true"  # it goes another way by now
    return response


def _holds(found: Conversation, message_id: int) -> bool:
    return any(
        message_id in {each.prompt_id, *(answer.answer_id for answer in each.candidates)}
        for each in found.exchanges
    )


# --- what changes a conversation ------------------------------------------------------------------


@blueprint.post("/c/<conversation_id>/messages")
def send(conversation_id: str) -> Response:
    """A new prompt; with `edit_of`, another version of one that is there.

    `after` is the last prompt that the page shows, 0 where it shows none: nobody goes on with what
    they have not seen. A page without scripts is led to the conversation.
    """
    if not is_id(conversation_id):
        abort(404)
    prompt = request.form.get("prompt", "").replace("\r\n", "\n").strip()
    if not prompt:
        raise RequestError("Write a message first.", field="prompt")
    if len(prompt) > services().config.max_prompt_chars:
        raise TooLarge(
            f"The message is longer than {services().config.max_prompt_chars:,} characters.",
            field="prompt",
        )
    models = [checked_model(each) for each in request.form.getlist("model")] or [""]
    if len(models) > COMPARED_MODELS:
        raise RequestError(f"At most {COMPARED_MODELS} models can be compared.", field="model")
    answers = list(zip(_stream_ids(len(models)), models, strict=True))
    mine = owner_made()
    edit_of = _message_id("edit_of") if "edit_of" in request.form else None
    after = _message_id("after") if "after" in request.form else None
    _expect_room(len(answers))
    try:
        found = _changed(
            conversation_id,
            lambda store: store.begin(
                conversation_id,
                mine,
                prompt,
                answers,
                worker=services().recorder.worker,
                edit_of=edit_of,
                after=after,
            ),
        )
    except Busy:
        last = services().store.get(conversation_id, mine, limit=1).last
        if edit_of is None and after not in {None, last or 0}:
            raise Moved(MOVED) from None  # it is another answer than the one that the page shows
        raise
    _begin(found)
    if sent_without_scripts():
        # Relative to this address: before Halt there may be a path that it does not know.
        return Response(status=303, headers={"Location": f"../{found.id}"})
    response = _started(found)
    response.headers["HX-Push-Url"] = url_for("pages.conversation", conversation_id=found.id)
    return response


@blueprint.post("/c/<conversation_id>/regenerate")
def regenerate(conversation_id: str) -> Response:
    """One more answer to a prompt, the last one where none is named.

    It may be in the middle: the conversation then ends with it.
    """
    (stream_id,) = _stream_ids(1)
    model = checked_model(request.form.get("model", ""))
    prompt_id = _message_id("prompt_id") if "prompt_id" in request.form else None
    mine = owner_made()
    _expect_room()
    found = _changed(
        conversation_id,
        lambda store: store.again(
            conversation_id,
            mine,
            stream_id,
            model,
            worker=services().recorder.worker,
            prompt_id=prompt_id,
        ),
    )
    _begin(found)
    return _started(found)


@blueprint.post("/c/<conversation_id>/continue")
def continue_(conversation_id: str) -> Response:
    """Go on with the last answer from its last word, in the same message."""
    (stream_id,) = _stream_ids(1)
    answer_id, mine = _shown_exchange(conversation_id).answer_id, owner_made()
    _expect_room()
    found = _changed(
        conversation_id,
        lambda store: store.extend(
            conversation_id, mine, answer_id, stream_id, worker=services().recorder.worker
        ),
    )
    run = _begin(found)
    shown = view(found.exchanges[-1], run, services().lengths, _rendering())
    return _streamed(shown, lambda **more: render_template("answer.html", a=shown, **more))


@blueprint.post("/c/<conversation_id>/discard")
def discard(conversation_id: str) -> str:
    """Take the last answer away. What is shown instead, which may be nothing, is returned."""
    gone, mine = _shown_exchange(conversation_id), owner_made()
    _changed(conversation_id, lambda store: store.discard(conversation_id, mine, gone.answer_id))
    return _from(services().store.get(conversation_id, mine), gone.prompt_id, *gone.prompts.ids)


@blueprint.post("/c/<conversation_id>/show")
def show(conversation_id: str) -> str:
    """Go to another version of a prompt or an answer: the conversation goes on from there."""
    message_id, mine = _message_id("message_id"), owner_made()
    found = _changed(conversation_id, lambda store: store.show(conversation_id, mine, message_id))
    return _from(found, message_id)


@blueprint.get("/c/<conversation_id>/from")
def from_here(conversation_id: str) -> Response:
    """A prompt's exchange, or that of another version of it, and all that follow.

    A page that asks for one that is not there is loaded anew.
    """
    prompt_id = _message_id("prompt_id")
    _caught_up(conversation_id)
    found = services().store.get(conversation_id, owner_made(), around=prompt_id)
    shown = _from(found, prompt_id)
    response = Response(shown, mimetype="text/html")
    if not shown:
        response.headers["HX-Refresh"] = "true"
    return response


@blueprint.post("/c/<conversation_id>/pick")
def pick(conversation_id: str) -> str:
    """Go on with one of several answers; those that are still being written are stopped."""
    mine = owner_made()
    chosen = request.form.get("stream_id", "")
    last = services().store.get(conversation_id, mine, limit=1).exchanges[-1:]
    candidates = last[0].candidates if last and last[0].rivals else ()
    if any(each.stream_id == chosen for each in candidates):
        running = [(each.stream_id, None) for each in candidates if each.ended is None]
        services().generations.stop_each(running, mine)
    return _exchange(
        _changed(conversation_id, lambda store: store.pick(conversation_id, mine, chosen))
    )


@blueprint.get("/c/<conversation_id>/usage")
def usage(conversation_id: str) -> tuple[str, int]:
    """The tokens of all that was answered in it, in words."""
    mine = owner_made()
    try:
        _caught_up(conversation_id)
        return used(services().store.totals(conversation_id, mine)), 200
    except UnknownConversation:  # its one prompt was taken back
        return "", 200
    except StoreUnavailable:  # said elsewhere; what the page shows may stay
        return "", 204


T = TypeVar("T")


def _expect_room(answers: int = 1) -> None:
    """Refuse what would be refused at its start, before the store is written to.

    Raises TooManyRequests, AtCapacity, Draining.
    """
    count_starts(answers, hit=False)
    services().generations.expect_room(answers)


def _changed(conversation_id: str, change: Callable[[Store], T]) -> T:
    """Change the conversation. An answer that has just ended may have to be written down first."""
    try:
        return change(services().store)
    except Busy:
        if not _caught_up(conversation_id):  # asks the other workers, once
            raise
    # What ended here is written. What ended in another worker is announced by the store alone.
    until, pause = now() + WRITE_WAIT, WRITE_TICK
    while True:
        try:
            return change(services().store)
        except Busy:
            if now() >= until:
                raise
        threading.Event().wait(pause)
        pause = min(2 * pause, WRITE_TICK_MAX)


def _caught_up(conversation_id: str) -> bool:
    """Wait until what has ended in it is written down. False: something is still being written."""
    last = services().store.get(conversation_id, owner_made(), limit=1).exchanges[-1:]
    for each in last[0].candidates if last else ():
        if each.ended is None:
            run = _run_of(each.stream_id)
            if (
                run is None
                or run.log.ended is None
                or not services().recorder.written(each.stream_id, WRITE_WAIT)
            ):
                return False
    return True


def _shown_exchange(conversation_id: str) -> Exchange:
    """The exchange at which a button was pressed. Raises UnknownConversation, RequestError."""
    prompt_id = _message_id("prompt_id")
    found = services().store.get(conversation_id, owner_made(), around=prompt_id, limit=1)
    for each in found.exchanges:
        if each.prompt_id == prompt_id:
            return each
    raise UnknownConversation(
        "This is not a part of the conversation any more. Load the page anew."
    )


def _from(found: Conversation, *message_ids: int) -> str:
    """The exchange of one of these messages, and all that follow; nothing if there is none."""
    for index, each in enumerate(found.exchanges):
        ids = {each.prompt_id, each.answer_id, *each.prompts.ids, *each.versions.ids}
        if not ids.isdisjoint(message_ids):
            rest = _window(found, "after") | {"exchanges": _all_shown(found, index)}
            return render_template("window.html", conversation_id=found.id, **rest)
    return ""


@blueprint.get("/models")
def models() -> str:
    """What can be chosen, as options; the one that is chosen stays so where it is still offered."""
    chosen = checked_model(request.args.get("model", ""))
    return render_template(
        "models_listed.html",
        groups=services().catalog.look(),
        no_list=services().catalog.has_no_list,
        notes=services().catalog.notes,
        catalog=services().catalog,
        config=services().config,
        loading=services().catalog.is_discovered and _demo_is_loading(),
        chosen=chosen,
        model=services().generations.upstream.known_model,
        system_prompt=_prompt_with(chosen, request.args.get("conversation", "")),
    )


def _prompt_with(model: str, conversation_id: str) -> str | None:
    """The system prompt of a conversation with this model, None where it is not known.

    The demo model has one of its own.
    """
    if not conversation_id:
        return None
    try:
        found = services().store.get(conversation_id, owner() or "", limit=1)
    except UnknownConversation:  # it is a new one
        return services().told_system_prompt(model)
    except StoreUnavailable:
        return None
    own = found.settings.system_prompt
    return services().told_system_prompt(model) if own is None else own


def _exchange(found: Conversation) -> str:
    return render_template("exchange.html", x=_shown(found.exchanges[-1]), conversation_id=found.id)


def _started(found: Conversation) -> Response:
    """The last exchange, whose answer has begun, and the stream of that answer."""
    shown = _shown(found.exchanges[-1])

    def draw(**more: bool) -> str:
        return render_template("exchange.html", x=shown, conversation_id=found.id, **more)

    if shown.settled or len(shown.answers) == 1:
        return _streamed(shown.answers[0], draw)
    return Response(draw(), mimetype="text/html")  # side by side: a stream for each of them


def _streamed(shown: AnswerView, draw: Callable[..., str]) -> Response:
    """What `draw` draws of an answer that has begun, and the stream of that answer behind it.

    Without the stream where the client does not ask for one, where there is no place for one, and
    where the answer has ended: an answer that runs then says where its stream is to be had.
    """
    if shown.state == "running" and "text/event-stream" in request.headers.get("Accept", ""):
        with contextlib.suppress(UnknownStream, OffsetLost, AtCapacity):
            run = services().generations.get(shown.id, owner())
            opening = sse_html(shown.after, draw(streamed=True))
            if (body := _live(run, shown.after, opening)) is not None:
                return Response(
                    body,
                    headers={**SSE_HEADERS, "X-Stream-Id": run.id},
                    direct_passthrough=True,
                )
    return Response(draw(), mimetype="text/html")


def _begin(found: Conversation) -> Run:
    """Start what answers the conversation's last prompt: all of it or nothing.

    Returns the first answer's run.
    """
    store, lengths, recorder = services().store, services().lengths, services().recorder
    titles = services().titles
    exchange = found.exchanges[-1]
    settings = found.settings

    def started(wanted: Exchange, messages: list[Message]) -> Run:
        def ended(run: Run) -> None:
            end, tokens = run.log.ended, None
            if isinstance(end, Done) and end.finish_reason == "stop" and not run.prefix:
                tokens = end.metrics.tokens
            lengths.end(run.id, wanted.asked, tokens)
            if wanted is exchange and not found.has_earlier and not found.named:
                titles.wanted(found.id, exchange.prompt, run.answer()[1], wanted.asked or None)

        def counted(run: Run, usage: dict[str, Any]) -> None:
            if recorder.written(run.id, WRITE_WAIT):
                store.count(run.id, usage)

        expected = None if wanted.prefix else lengths.begin(wanted.stream_id, wanted.asked)
        chat = ChatRequest(
            messages[:-1] if wanted.prefix else messages,  # the last one is what it goes on from
            id=wanted.stream_id,
            model=wanted.asked or None,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        try:
            if wanted.prefix:
                chat = go_on(chat, wanted.prefix)
            run = services().generations.start(
                chat,
                found.owner,
                ended,
                services().tools,
                on_usage=counted,
                noted=True,
            )
            run.expected = expected
            return run
        except Exception:
            lengths.end(wanted.stream_id, wanted.asked)
            raise

    waiting = [each for each in exchange.candidates if each.ended is None]
    runs: list[Run] = []
    try:
        count_starts(len(waiting))
        prompts = [services().told_system_prompt(each.asked) for each in waiting]
        messages = {prompt: store.told(found.id, found.owner, prompt) for prompt in set(prompts)}
        for each, prompt in zip(waiting, prompts, strict=True):
            runs.append(started(each, messages[prompt]))
    except Exception:
        idle = [each.stream_id for each in waiting[len(runs) :]]
        try:
            store.take_back(found.id, idle[0])
        except StoreUnavailable:
            recorder.abandon(idle)
        services().generations.stop_each([(run.id, None) for run in runs], found.owner)
        raise
    runs[0].log.wait(0, OPENING_WAIT)
    return runs[0]


@blueprint.get("/streams/<stream_id>/page")
def stream(stream_id: str) -> Response:
    try:
        run = services().generations.get(stream_id, owner())
    except UnknownStream:
        return _one_message(lost(stream_id))
    # The last event is sent again to a page that has it: without it the page would ask for ever.
    after = min(after_parameter(), run.log.last - (run.log.ended is not None))
    try:
        body = _live(run, after)
    except OffsetLost:
        return _one_message(_writer(run, 0).whole(_rendering()))
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def _live(run: Recording, after: int, opening: bytes | None = None) -> EventStream | None:
    """A page's stream of what comes behind an event. Raises AtCapacity, OffsetLost.

    A session that holds LIVE_PER_SESSION of them gets one that ends after the events that are
    there; or None, where there is an `opening`.
    """
    tabs, place, brief = services().generations.capacity.tabs, None, False
    if request.headers.get(PROTOCOL_HEADER, "") not in MULTIPLEXED:
        place = tabs.take(LIVE_PER_SESSION, number_of(owner() or "", LIVE_PER_SESSION))
        brief = place is None
    if brief and opening is not None:
        return None

    def closed() -> None:
        if place is not None:
            tabs.give_back(place)

    try:
        writer = _writer(run, after)
        services().renderer.expect()
        return EventStream(
            services().generations,
            run,
            client_socket(),
            after,
            writer.present,
            opening=opening,
            interval=FRAME_INTERVAL,
            brief=brief,
            aside=writer.aside,
            on_close=closed,
        )
    except BaseException:
        closed()
        raise


@blueprint.get("/saving")
def how_saving_goes() -> str:
    """Asked by a page that was told that saving does not go well, until it does."""
    return render_template("saving.html", saving=services().saving())


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> BaseResponse | tuple[str, int] | str:
    if not services().config.token:
        return redirect(url_for("pages.index"))
    if request.method != "POST":
        return render_template("login.html")
    given = request.form.get("token", "").strip()
    if token_matches(given):
        session["login"] = login_mark()
        owner_made()
        return redirect(url_for("pages.index"))
    if given and (wait := count_wrong_token()):
        response = Response(render_template("login.html", fault=too_many(wait)), 429)
        response.headers["Retry-After"] = str(wait)
        return response
    return render_template("login.html", fault="That is not the token. Try again."), 401


def stop_fragment(receipt: Receipt) -> str:
    """What the page shows after a Stop: the answer as it was stopped."""
    shown = request.form.get("shown")
    if receipt.note:
        note = html.escape(receipt.note)
        return f'<p class="fault" role="alert" data-code="store_unavailable">{note}</p>'
    if receipt.status == "pending" and not shown:
        return ""  # it has not begun; its own response will say that it was stopped
    try:
        run = services().generations.get(receipt.id, owner())
    except UnknownStream:
        return lost(receipt.id) if shown else ""  # of another session, or no longer kept
    except StoreUnavailable:
        return ""  # it was stopped all the same; what the page shows stays
    rendering = services().renderer.within(STOP_WAIT)
    stopped = whole(run, services().lengths, rendering)
    if stopped is None:  # of another worker, whose end has not come here yet
        writer = PageWriter(run, 0, _answer_template(), services().lengths, services().renderer)
        return writer.whole(rendering)
    return stopped


def _run_of(stream_id: str) -> Recording | None:
    try:
        return services().generations.get(stream_id, owner())
    except UnknownStream:
        return None


def _message_id(field: str) -> int:
    """A message's ID in the form. Raises RequestError."""
    raw = request.values.get(field, "")
    if not is_number(raw):
        raise RequestError(f"{field} must be the ID of a message.", field=field)
    return int(raw)


def _stream_ids(count: int) -> list[str]:
    """The streams' IDs: those that the page has chosen, made up where it has not."""
    given = [checked_id(each, "id") for each in request.form.getlist("id") if each]
    return (given + [secrets.token_urlsafe(16) for _ in range(count - len(given))])[:count]


def _writer(run: Recording, after: int) -> PageWriter:
    return PageWriter(
        run, after, _answer_template(), services().lengths, services().renderer, services().saving
    )


def _answer_template() -> Template:
    return current_app.jinja_env.get_template("answer.html")


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)

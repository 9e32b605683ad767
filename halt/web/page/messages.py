"""Prompts and further answers: the requests that start runs.

The POST that asks for an answer is responded to with the stream of that answer, whose first message
is what the POST changes (the exchange, or the answer).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

from flask import Response, abort, render_template, request, url_for

from halt.chat.service import Started
from halt.core.decoding import checked_id, is_id
from halt.core.events import sse_html
from halt.errors import AtCapacity, OffsetLost, RequestError, UnknownStream
from halt.providers.catalog import valid_model_name
from halt.web.event_stream import SSE_HEADERS
from halt.web.page.conversations import current_exchange_view, page_renderer
from halt.web.page.streams import live_stream
from halt.web.page.views import AnswerView, view
from halt.web.requests import is_plain_form_post, message_id
from halt.web.services import services
from halt.web.sessions import ensure_owner, owner

#: Models that one prompt may be sent to; the page shows their answers side by side.
COMPARED_MODELS = 4

#: Seconds that a POST waits for the first event before it draws its response: meanwhile the thread
#: that sends the request to the model's server has the interpreter to itself. Drawing at once makes
#: that request 10 to 25 ms later on a busy machine with two cores, and the first text 6 to 20 ms.
OPENING_WAIT = 0.01


def send(conversation_id: str) -> Response:
    """A new prompt, see `ChatService.send`. A page without scripts is led to the conversation."""
    if not is_id(conversation_id):
        abort(404)
    prompt = services().chat.checked_prompt(request.form.get("prompt", ""))
    models = [valid_model_name(each) for each in request.form.getlist("model")] or [""]
    if len(models) > COMPARED_MODELS:
        raise RequestError(f"At most {COMPARED_MODELS} models can be compared.", field="model")
    answers = list(zip(_stream_ids(len(models)), models, strict=True))
    started = services().chat.send(
        conversation_id,
        ensure_owner(),
        prompt,
        answers,
        edit_of=message_id("edit_of") if "edit_of" in request.form else None,
        after=message_id("after") if "after" in request.form else None,
    )
    if is_plain_form_post():
        # Relative to this address: before Halt there may be a path that it does not know.
        return Response(status=303, headers={"Location": f"../{conversation_id}"})
    response = _begun(started)
    response.headers["HX-Push-Url"] = url_for("pages.conversation", conversation_id=conversation_id)
    return response


def regenerate(conversation_id: str) -> Response:
    """One more answer to a prompt, the last one where none is named."""
    (stream_id,) = _stream_ids(1)
    model = valid_model_name(request.form.get("model", ""))
    prompt_id = message_id("prompt_id") if "prompt_id" in request.form else None
    return _begun(
        services().chat.regenerate(conversation_id, ensure_owner(), stream_id, model, prompt_id)
    )


def continue_(conversation_id: str) -> Response:
    """Go on with the last answer from its last word, in the same message."""
    (stream_id,) = _stream_ids(1)
    prompt_id = message_id("prompt_id")
    started = services().chat.continue_answer(conversation_id, ensure_owner(), prompt_id, stream_id)
    started.run.log.wait(0, OPENING_WAIT)
    shown = view(
        started.conversation.exchanges[-1],
        started.run,
        services().chat.answer_progress,
        page_renderer(),
    )
    return _streamed(shown, lambda **more: render_template("answer.html", a=shown, **more))


def _begun(started: Started) -> Response:
    """The exchange whose answer has begun, and the stream of that answer."""
    started.run.log.wait(0, OPENING_WAIT)
    conversation = started.conversation
    shown = current_exchange_view(conversation.exchanges[-1])

    def draw(**more: bool) -> str:
        return render_template("exchange.html", x=shown, conversation_id=conversation.id, **more)

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
            if (body := live_stream(run, shown.after, opening)) is not None:
                headers = {**SSE_HEADERS, "X-Stream-Id": run.id}
                return Response(body, headers=headers, direct_passthrough=True)
    return Response(draw(), mimetype="text/html")


def _stream_ids(count: int) -> list[str]:
    """The streams' IDs: those that the page has chosen, made up where it has not."""
    given = [checked_id(each, "id") for each in request.form.getlist("id") if each]
    return (given + [secrets.token_urlsafe(16) for _ in range(count - len(given))])[:count]

"""The routes that start answers: a new prompt, regenerate, continue.

The response to the POST is the answer's stream. Its first message is the HTML that the POST changes
(the exchange or the answer).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import replace

from flask import Response, abort, render_template, request, url_for

from halt.chat.service import Started
from halt.core.decoding import checked_id, is_id
from halt.core.events import sse_html
from halt.errors import AtCapacity, OffsetLost, RequestError, UnknownStream
from halt.providers.catalog import valid_model_name
from halt.web.event_stream import SSE_HEADERS
from halt.web.identity import owner, stream_key
from halt.web.page.conversations import current_exchange_view, page_renderer
from halt.web.page.streams import live_stream
from halt.web.page.views import AnswerView, view
from halt.web.requests import STOPS_MAX, is_plain_form_post, message_id
from halt.web.services import services

#: Maximum of models for one prompt; the page shows their answers side by side.
COMPARED_MODELS = 4

#: Seconds that a POST waits for the first event before it renders its response. In that time the
#: thread that sends the request to the model's server does not share the interpreter. Rendering at
#: once delays that request by 10 to 25 ms on a busy machine with two cores, and the first text by
#: 6 to 20 ms.
OPENING_WAIT = 0.01


def send(conversation_id: str) -> Response:
    """Add a prompt (see `ChatService.send`). Without scripts, redirect to the conversation."""
    if not is_id(conversation_id):
        abort(404)
    return start(conversation_id, attached_files())


def attached_files() -> list[tuple[str, str]]:
    """The files (hash, name) that a form names. Raises RequestError."""
    hashes, names = request.form.getlist("file"), request.form.getlist("file_name")
    if len(names) != len(hashes):
        raise RequestError("Each file needs its file_name.", field="file_name")
    return list(zip(hashes, names, strict=True))


def start(conversation_id: str, files: list[tuple[str, str]]) -> Response:
    """Send the form's prompt with these files."""
    files = services().chat.checked_files(owner(), files) if files else []
    prompt = services().chat.checked_prompt(request.form.get("prompt", ""), files)
    models = [valid_model_name(name) for name in request.form.getlist("model")] or [""]
    if len(models) > COMPARED_MODELS:
        raise RequestError(f"At most {COMPARED_MODELS} models can be compared.", field="model")
    answers = list(zip(_stream_ids(len(models)), models, strict=True))
    started = services().chat.send(
        conversation_id,
        owner(),
        prompt,
        answers,
        edit_of=message_id("edit_of") if "edit_of" in request.form else None,
        after=message_id("after") if "after" in request.form else None,
        files=files,
    )
    if is_plain_form_post():
        return _to_conversation(conversation_id)
    response = _begun(started)
    response.headers["HX-Push-Url"] = url_for(
        "pages.show_conversation", conversation_id=conversation_id
    )
    return response


def stop(conversation_id: str) -> Response:
    """Stop the running answers of a conversation, and redirect to it: Stop without scripts.

    The page names those that it shows (`running`), so that this Stop too needs no database.
    """
    named = [checked_id(stream_id, "running") for stream_id in request.form.getlist("running")]
    stops = [(stream_id, None) for stream_id in named[:STOPS_MAX]]
    receipts = services().generations.stop_many(stops, owner()) if stops else []
    if any(receipt.status == "stopped" for receipt in receipts):
        return _to_conversation(conversation_id)
    conversation = services().store.conversations.get(conversation_id, owner(), limit=1)
    running = [
        (answer.stream_id, None)
        for exchange in conversation.exchanges
        for answer in exchange.candidates
        if answer.ended is None
    ]
    services().generations.stop_many(running, owner())
    return _to_conversation(conversation_id)


def _to_conversation(conversation_id: str) -> Response:
    """A redirect from an address below the conversation's, or `/files/messages/ID`.

    It is relative, because a proxy may serve Halt under a path that Halt does not know.
    """
    folder = "../../c" if request.blueprint == "files" else ".."
    return Response(status=303, headers={"Location": f"{folder}/{conversation_id}"})


def regenerate(conversation_id: str) -> Response:
    """Start another answer to a prompt, by default to the last one."""
    (stream_id,) = _stream_ids(1)
    model = valid_model_name(request.form.get("model", ""))
    prompt_id = message_id("prompt_id") if "prompt_id" in request.form else None
    return _begun(services().chat.regenerate(conversation_id, owner(), stream_id, model, prompt_id))


def continue_(conversation_id: str) -> Response:
    """Continue the last answer in the same message."""
    (stream_id,) = _stream_ids(1)
    prompt_id = message_id("prompt_id")
    started = services().chat.continue_answer(conversation_id, owner(), prompt_id, stream_id)
    started.run.log.wait(0, OPENING_WAIT)
    exchange = started.conversation.exchanges[-1]
    answer = replace(
        view(exchange, started.run, services().chat.answer_progress, page_renderer()),
        versions=exchange.versions,
    )
    return _streamed(answer, lambda **more: render_template("answer.html", a=answer, **more))


def _begun(started: Started) -> Response:
    """The response to a started prompt: the exchange and the stream of its answer."""
    started.run.log.wait(0, OPENING_WAIT)
    conversation = started.conversation
    exchange = current_exchange_view(conversation.exchanges[-1])

    def draw(**more: bool) -> str:
        return render_template("exchange.html", x=exchange, conversation_id=conversation.id, **more)

    if exchange.is_selected or len(exchange.answers) == 1:
        return _streamed(exchange.answers[0], draw)
    return Response(draw(), mimetype="text/html")  # side by side: the page opens a stream for each


def _streamed(answer: AnswerView, draw: Callable[..., str]) -> Response:
    """The HTML of a started answer, made by `draw`, followed by the answer's stream.

    The HTML alone where the client does not accept a stream, where no stream is free, and where the
    answer has ended. The HTML of a running answer then contains the address of its stream.
    """
    if answer.state == "running" and "text/event-stream" in request.headers.get("Accept", ""):
        with contextlib.suppress(UnknownStream, OffsetLost, AtCapacity):
            run = services().generations.get(stream_key(answer.id))
            opening = sse_html(answer.after, draw(streamed=True))
            if (body := live_stream(run, answer.after, opening)) is not None:
                headers = {**SSE_HEADERS, "X-Stream-Id": run.id}
                return Response(body, headers=headers, direct_passthrough=True)
    return Response(draw(), mimetype="text/html")


def _stream_ids(count: int) -> list[str]:
    """`count` stream IDs: those that the page sent, and generated ones for the rest."""
    ids = [checked_id(stream_id, "id") for stream_id in request.form.getlist("id") if stream_id]
    return (ids + [secrets.token_urlsafe(16) for _ in range(count - len(ids))])[:count]

"""A conversation's page, and the HTML fragments of its parts and versions.

A route that changes the conversation at an exchange returns that exchange and all that follow it,
since another version of a prompt or an answer has other exchanges after it.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

from flask import Response, g, render_template, request

from halt.chat.figures import usage_text
from halt.core.decoding import is_number
from halt.core.generation import Generation
from halt.errors import HaltError, StoreUnavailable
from halt.rendering.renderer import TEXT_WAIT, PageRenderer
from halt.store.models import Conversation, Exchange, Settings, UnknownConversation
from halt.web.identity import owner, stream_key
from halt.web.page.models import default_model, demo_is_loading
from halt.web.page.no_model import offers
from halt.web.page.views import ExchangeView, exchange_view
from halt.web.requests import message_id
from halt.web.services import services


def index() -> str:
    """The page of a new conversation."""
    return _page(secrets.token_urlsafe(16), None)


def show_conversation(conversation_id: str) -> str:
    """The page with a conversation's end; with `at`, with the part around that message."""
    owner_id, at = owner(), request.args.get("at", "")
    if not is_number(at):
        return _page(conversation_id, services().store.conversations.get(conversation_id, owner_id))
    conversation = services().store.conversations.get(conversation_id, owner_id, around=int(at))
    message_ids = (
        {exchange.prompt_id, *(answer.answer_id for answer in exchange.candidates)}
        for exchange in conversation.exchanges
    )
    if not any(int(at) in ids for ids in message_ids):  # it belongs to another version
        with contextlib.suppress(HaltError):  # on an error the page shows the end
            conversation = services().store.turns.show(conversation_id, owner_id, int(at))
    return _page(conversation_id, conversation)


def exchanges(conversation_id: str) -> Response:
    """The exchanges before or after a prompt that the page shows."""
    side = "before" if "before" in request.args else "after"
    position = {side: message_id(side)}
    conversation = services().store.conversations.get(conversation_id, owner(), **position)
    response = Response(
        render_template(
            "window.html", conversation_id=conversation_id, **window(conversation, side)
        ),
        mimetype="text/html",
    )
    if not (conversation.has_later if side == "before" else conversation.has_earlier):
        response.headers["HX-Refresh"] = "true"  # by now the conversation has another version
    return response


def show(conversation_id: str) -> str:
    """Switch to another version of a prompt or an answer, and return the exchanges from there."""
    at = message_id("message_id")
    return render_from(services().chat.show_version(conversation_id, owner(), at), at)


def exchanges_from_prompt(conversation_id: str) -> Response:
    """The exchange of a prompt or of another version of it, and all exchanges after it.

    If there is none, the page reloads.
    """
    prompt_id, owner_id = message_id("prompt_id"), owner()
    services().chat.wait_until_saved(conversation_id, owner_id)
    conversation = services().store.conversations.get(conversation_id, owner_id, around=prompt_id)
    fragment = render_from(conversation, prompt_id)
    response = Response(fragment, mimetype="text/html")
    if not fragment:
        response.headers["HX-Refresh"] = "true"
    return response


def select_answer(conversation_id: str) -> str:
    """Select one of several answers; the conversation continues with it."""
    stream_id = request.form.get("stream_id", "")
    conversation = services().chat.select(conversation_id, owner(), stream_id)
    exchange = current_exchange_view(conversation.exchanges[-1])
    return render_template("exchange.html", x=exchange, conversation_id=conversation.id)


def edit_answer(conversation_id: str) -> str:
    """Add a version of an answer with the user's text, and return the exchanges from there."""
    chat, prompt_id = services().chat, message_id("prompt_id")
    text, stream_id = request.form.get("text", ""), request.form.get("stream_id", "")
    conversation = chat.edit_answer(
        conversation_id, owner(), prompt_id, stream_id, chat.checked_answer(text)
    )
    return render_from(conversation, prompt_id)


def discard(conversation_id: str) -> str:
    """Discard the last answer. Return the exchange that replaces it, "" if there is none."""
    prompt_id, owner_id = message_id("prompt_id"), owner()
    discarded = services().chat.discard(conversation_id, owner_id, prompt_id)
    conversation = services().store.conversations.get(conversation_id, owner_id)
    return render_from(conversation, discarded.prompt_id, *discarded.prompts.ids)


def usage(conversation_id: str) -> tuple[str, int]:
    """The token usage of the conversation, as text."""
    try:
        return usage_text(services().chat.usage(conversation_id, owner())), 200
    except UnknownConversation:  # the start of its only answer was cancelled
        return "", 200
    except StoreUnavailable:  # another element reports it; the page keeps its text
        return "", 204


def _page(conversation_id: str, conversation: Conversation | None) -> str:
    settings = conversation.settings if conversation else Settings()
    return render_template(
        "chat.html",
        conversation_id=conversation_id,
        title=conversation.title if conversation else "",
        is_pinned=bool(conversation and conversation.is_pinned),
        is_archived=bool(conversation and conversation.is_archived),
        system_prompt=services().chat.system_prompt(settings.model, settings.system_prompt),
        prompt_name=settings.prompt_name,
        **window(conversation),
        usage=usage_text(conversation.usage) if conversation else "",
        config=services().config,
        chosen=settings.model if conversation else None,
        catalog=services().catalog,
        **default_model(settings.model),
        loading=demo_is_loading(),
        **offers(),
    )


# --- rendering ------------------------------------------------------------------------------------


def page_renderer() -> PageRenderer:
    """The renderer of this request: all of its texts share one deadline."""
    if "rendering" not in g:
        g.rendering = services().renderer.with_deadline(TEXT_WAIT)
    renderer: PageRenderer = g.rendering
    return renderer


def window(part: Conversation | None, side: str = "") -> dict[str, Any]:
    """The variables of `window.html`: exchanges, and whether there are more before or after."""
    return {
        "exchanges": exchange_views(part) if part else [],
        "earlier": part.first if part and part.has_earlier and side != "after" else None,
        "later": part.last if part and part.has_later and side != "before" else None,
    }


def exchange_views(part: Conversation, first: int = 0) -> list[ExchangeView]:
    """The views of the loaded exchanges, from index `first` on."""
    views = []
    for exchange in part.exchanges[first:]:
        last = exchange is part.exchanges[-1] and not part.has_later
        view = current_exchange_view(exchange, last=last)
        if view.withdrawn:  # the store will replace it soon
            if exchange.previous is None:
                continue
            view = current_exchange_view(exchange.previous, last=last)
        views.append(view)
    return views


def current_exchange_view(exchange: Exchange, *, last: bool = True) -> ExchangeView:
    """The view of an exchange as it is now, with its running answers."""
    chat = services().chat

    def find_generation(stream_id: str) -> Generation | None:
        return chat.find_generation(stream_key(stream_id))

    return exchange_view(
        exchange, find_generation, chat.answer_progress, page_renderer(), last=last
    )


def render_from(part: Conversation, *message_ids: int) -> str:
    """The HTML of the exchange of one of these messages and all after it, "" if there is none."""
    for index, exchange in enumerate(part.exchanges):
        ids = {
            exchange.prompt_id,
            exchange.answer_id,
            *exchange.prompts.ids,
            *exchange.versions.ids,
        }
        if not ids.isdisjoint(message_ids):
            variables = window(part, "after") | {"exchanges": exchange_views(part, index)}
            return render_template("window.html", conversation_id=part.id, **variables)
    return ""

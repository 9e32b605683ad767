"""A conversation's page, and the fragments that show other parts or versions of it.

A route that changes the conversation at one of its exchanges returns that exchange and all that
follow, since an edited prompt or another version leads to another rest.
"""

from __future__ import annotations

import contextlib
import secrets
from functools import partial
from typing import Any

from flask import Response, g, render_template, request

from halt.chat.figures import usage_text
from halt.core.decoding import is_number
from halt.errors import HaltError, StoreUnavailable
from halt.rendering.renderer import TEXT_WAIT, PageRenderer
from halt.store.models import Conversation, Exchange, Settings, UnknownConversation
from halt.web.page.models import demo_is_loading
from halt.web.page.views import ExchangeView, exchange_view
from halt.web.requests import message_id
from halt.web.services import services
from halt.web.sessions import ensure_owner, owner


def index() -> str:
    ensure_owner()
    return _page(secrets.token_urlsafe(16), None)


def conversation(conversation_id: str) -> str:
    """The end of a conversation; with `at`, the part around a message of any version."""
    mine, at = ensure_owner(), request.args.get("at", "")
    if not is_number(at):
        return _page(conversation_id, services().store.conversations.get(conversation_id, mine))
    found = services().store.conversations.get(conversation_id, mine, around=int(at))
    shown = ({each.prompt_id, *(a.answer_id for a in each.candidates)} for each in found.exchanges)
    if not any(int(at) in ids for ids in shown):
        with contextlib.suppress(HaltError):  # then its end is shown
            found = services().store.turns.show(conversation_id, mine, int(at))
    return _page(conversation_id, found)


def exchanges(conversation_id: str) -> Response:
    """The part of a conversation before, or after, a prompt that the page shows."""
    side = "before" if "before" in request.args else "after"
    place, mine = {side: message_id(side)}, owner() or ""
    found = services().store.conversations.get(conversation_id, mine, **place)
    response = Response(
        render_template("window.html", conversation_id=conversation_id, **window(found, side)),
        mimetype="text/html",
    )
    if not (found.has_later if side == "before" else found.has_earlier):
        response.headers["HX-Refresh"] = "true"  # it goes another way by now
    return response


def show(conversation_id: str) -> str:
    """Go to another version of a prompt or an answer: the conversation goes on from there."""
    at = message_id("message_id")
    return render_from(services().chat.show_version(conversation_id, ensure_owner(), at), at)


def from_here(conversation_id: str) -> Response:
    """A prompt's exchange, or that of another version of it, and all that follow.

    A page that asks for one that is not there is loaded anew.
    """
    prompt_id, mine = message_id("prompt_id"), ensure_owner()
    services().chat.wait_until_saved(conversation_id, mine)
    found = services().store.conversations.get(conversation_id, mine, around=prompt_id)
    shown = render_from(found, prompt_id)
    response = Response(shown, mimetype="text/html")
    if not shown:
        response.headers["HX-Refresh"] = "true"
    return response


def pick(conversation_id: str) -> str:
    """Go on with one of several answers."""
    chosen = request.form.get("stream_id", "")
    found = services().chat.select(conversation_id, ensure_owner(), chosen)
    shown = current_exchange_view(found.exchanges[-1])
    return render_template("exchange.html", x=shown, conversation_id=found.id)


def discard(conversation_id: str) -> str:
    """Take the last answer away. What is shown instead, which may be nothing, is returned."""
    prompt_id, mine = message_id("prompt_id"), ensure_owner()
    gone = services().chat.discard(conversation_id, mine, prompt_id)
    found = services().store.conversations.get(conversation_id, mine)
    return render_from(found, gone.prompt_id, *gone.prompts.ids)


def usage(conversation_id: str) -> tuple[str, int]:
    """The tokens of all that was answered in it, in words."""
    try:
        return usage_text(services().chat.usage(conversation_id, ensure_owner())), 200
    except UnknownConversation:  # its one prompt was taken back
        return "", 200
    except StoreUnavailable:  # said elsewhere; what the page shows may stay
        return "", 204


def _page(conversation_id: str, conversation: Conversation | None) -> str:
    settings = conversation.settings if conversation else Settings()
    return render_template(
        "chat.html",
        conversation_id=conversation_id,
        title=conversation.title if conversation else "",
        system_prompt=services().chat.system_prompt(settings.model, settings.system_prompt),
        **window(conversation),
        used=usage_text(conversation.usage) if conversation else "",
        config=services().config,
        chosen=settings.model if conversation else None,
        catalog=services().catalog,
        model=services().generations.upstream.known_model,
        loading=demo_is_loading(),
    )


# --- what is drawn of a conversation --------------------------------------------------------------


def page_renderer() -> PageRenderer:
    """Renders what this request shows: all of it by one deadline."""
    if "rendering" not in g:
        g.rendering = services().renderer.within(TEXT_WAIT)
    found: PageRenderer = g.rendering
    return found


def window(found: Conversation | None, side: str = "") -> dict[str, Any]:
    """What `window.html` shows: exchanges, and what is before and after them, or on one side."""
    return {
        "exchanges": exchange_views(found) if found else [],
        "earlier": found.first if found and found.has_earlier and side != "after" else None,
        "later": found.last if found and found.has_later and side != "before" else None,
    }


def exchange_views(found: Conversation, first: int = 0) -> list[ExchangeView]:
    """The exchanges of the window, from its `first` one on."""
    out = []
    for each in found.exchanges[first:]:
        last = each is found.exchanges[-1] and not found.has_later
        shown = current_exchange_view(each, last=last)
        if shown.withdrawn:  # just now: the store will know in a moment
            if each.previous is None:
                continue
            shown = current_exchange_view(each.previous, last=last)
        out.append(shown)
    return out


def current_exchange_view(exchange: Exchange, *, last: bool = True) -> ExchangeView:
    chat = services().chat
    find_generation = partial(chat.find_generation, owner=owner())
    return exchange_view(
        exchange, find_generation, chat.answer_progress, page_renderer(), last=last
    )


def render_from(found: Conversation, *message_ids: int) -> str:
    """The exchange of one of these messages, and all that follow; nothing if there is none."""
    for index, each in enumerate(found.exchanges):
        ids = {each.prompt_id, each.answer_id, *each.prompts.ids, *each.versions.ids}
        if not ids.isdisjoint(message_ids):
            rest = window(found, "after") | {"exchanges": exchange_views(found, index)}
            return render_template("window.html", conversation_id=found.id, **rest)
    return ""

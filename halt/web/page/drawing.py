"""What several routes of the page draw: exchanges as they are now."""

from __future__ import annotations

from functools import partial
from typing import Any

from flask import g, render_template

from halt.rendering.renderer import TEXT_WAIT, Rendering
from halt.store.models import Conversation, Exchange
from halt.web.page.views import ExchangeView, exchange_view
from halt.web.services import services
from halt.web.sessions import owner


def rendering() -> Rendering:
    """Renders what this request shows: all of it by one deadline."""
    if "rendering" not in g:
        g.rendering = services().renderer.within(TEXT_WAIT)
    found: Rendering = g.rendering
    return found


def window(found: Conversation | None, side: str = "") -> dict[str, Any]:
    """What `window.html` shows: exchanges, and what is before and after them, or on one side."""
    return {
        "exchanges": exchanges_from(found) if found else [],
        "earlier": found.first if found and found.has_earlier and side != "after" else None,
        "later": found.last if found and found.has_later and side != "before" else None,
    }


def exchanges_from(found: Conversation, first: int = 0) -> list[ExchangeView]:
    """The exchanges of the window, from its `first` one on."""
    out = []
    for each in found.exchanges[first:]:
        last = each is found.exchanges[-1] and not found.has_later
        shown = shown_exchange(each, last=last)
        if shown.withdrawn:  # just now: the store will know in a moment
            if each.previous is None:
                continue
            shown = shown_exchange(each.previous, last=last)
        out.append(shown)
    return out


def shown_exchange(exchange: Exchange, *, last: bool = True) -> ExchangeView:
    chat = services().chat
    run_of = partial(chat.run_of, owner=owner())
    return exchange_view(exchange, run_of, chat.lengths, rendering(), last=last)


def drawn_from(found: Conversation, *message_ids: int) -> str:
    """The exchange of one of these messages, and all that follow; nothing if there is none."""
    for index, each in enumerate(found.exchanges):
        ids = {each.prompt_id, each.answer_id, *each.prompts.ids, *each.versions.ids}
        if not ids.isdisjoint(message_ids):
            rest = window(found, "after") | {"exchanges": exchanges_from(found, index)}
            return render_template("window.html", conversation_id=found.id, **rest)
    return ""

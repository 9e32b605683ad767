"""What the page shows after a Stop."""

from __future__ import annotations

import html

from flask import current_app, request

from halt.core.receipts import Receipt
from halt.errors import StoreUnavailable, UnknownStream
from halt.store.models import Exchange
from halt.web.page.ended_html import ended_answer
from halt.web.page.views import view
from halt.web.page.writer import in_place_of_answer, lost
from halt.web.services import services
from halt.web.sessions import owner

#: Seconds that a Stop waits for the colours of what it shows.
STOP_WAIT = 0.2


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
    lengths, rendering = services().chat.lengths, services().renderer.within(STOP_WAIT)
    answer = view(Exchange("", run.id, asked=run.asked), run, lengths, rendering)
    if answer.state == "running":  # of another worker, whose end has not come here yet
        template = current_app.jinja_env.get_template("answer.html")
        return in_place_of_answer(run.id, template.render(a=answer))
    return in_place_of_answer(run.id, ended_answer(answer))

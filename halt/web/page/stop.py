"""What the page shows after a Stop: the HTML of the answer, made of plain strings.

It is the same as `answer.html` draws of an answer that has ended, which a test holds. A Stop's way
waits for no template.
"""

from __future__ import annotations

import html

from flask import current_app, request
from markupsafe import escape

from halt.core.receipts import Receipt
from halt.errors import StoreUnavailable, UnknownStream
from halt.store.models import Exchange
from halt.web.page.views import AnswerView, BelowView, FoldView, view
from halt.web.page.writer import in_place_of_answer, lost_message
from halt.web.services import services
from halt.web.sessions import owner

#: Seconds that a Stop waits for the colours of what it shows.
STOP_WAIT = 0.2

_CONTINUE = (
    '<button type="button" class="continue" data-do="continue" hx-post '
    'hx-target="closest article" hx-swap="outerHTML">Continue</button>'
)
_COPY = '<button type="button" class="copy" data-copy="answer">Copy</button>'
_DISCARD = (
    '<button type="button" class="discard" data-do="discard" hx-post '
    'hx-target="closest .exchange" hx-swap="outerHTML">Discard</button>'
)


def stop_fragment(receipt: Receipt) -> str:
    """The answer as it was stopped, in place of what the page shows of it."""
    shown = request.form.get("shown")
    if receipt.note:
        note = html.escape(receipt.note)
        return f'<p class="fault" role="alert" data-code="store_unavailable">{note}</p>'
    if receipt.status == "pending" and not shown:
        return ""  # it has not begun; its own response will say that it was stopped
    try:
        run = services().generations.get(receipt.id, owner())
    except UnknownStream:
        return lost_message(receipt.id) if shown else ""  # of another session, or no longer kept
    except StoreUnavailable:
        return ""  # it was stopped all the same; what the page shows stays
    answer_progress, rendering = (
        services().chat.answer_progress,
        services().renderer.within(STOP_WAIT),
    )
    answer = view(
        Exchange("", run.id, requested_model=run.requested_model), run, answer_progress, rendering
    )
    if answer.state == "running":  # of another worker, whose end has not come here yet
        template = current_app.jinja_env.get_template("answer.html")
        return in_place_of_answer(run.id, template.render(a=answer))
    return in_place_of_answer(run.id, ended_answer(answer))


def ended_answer(a: AnswerView) -> str:
    """The answer as `answer.html` draws it, in any state but `running`."""
    id_, asked, state = escape(a.id), escape(a.asked), escape(a.state)
    return (
        f'<article class="answer" id="a-{id_}" aria-label="Answer" data-stream="{id_}" '
        f'data-model="{asked}" data-state="{state}"{"" if a.whole else " data-cut"}>\n'
        f'<p class="name">{escape(a.asked or a.model or "Default model")}</p>\n'
        f'<div class="folds" id="earlier-{id_}" hx-preserve>'
        f"{''.join(_fold(f'{a.id}-earlier', fold) for fold in a.earlier)}</div>\n"
        f'<div class="folds" id="folds-{id_}">'
        f"{''.join(_fold(a.id, fold) for fold in a.folds)}</div>\n"
        f'<div class="text"><div id="done-{id_}">{a.patch.finished}</div></div>\n'
        f'<div class="below" id="earlier-below-{id_}" hx-preserve>{_below(a.earlier_below)}</div>\n'
        f'<div class="below" id="below-{id_}">{_below(a.below)}</div>\n'
        f"{_note(a)}<footer>\n{_figures(a)}"
        f'<p class="actions">\n{_actions(a)}</p>\n</footer>\n'
        f'<template class="source">{escape(a.source)}</template>\n</article>'
    )


def _note(a: AnswerView) -> str:
    if a.state == "error":
        return f'<p class="fault" role="alert">{escape(a.note)}</p>\n'
    return f'<p class="note"><span class="badge">{escape(a.note)}</span></p>' if a.note else ""


def _figures(a: AnswerView) -> str:
    if not a.figures:
        return ""
    return f'<p class="figures">{" · ".join(map(str, map(escape, a.figures)))}</p>'


def _actions(a: AnswerView) -> str:
    out = [_CONTINUE] if a.broken else []
    if a.source:
        out.append(
            '<button type="button" class="pick" data-do="pick" name="stream_id" '
            f'value="{escape(a.id)}" hx-post hx-target="closest .exchange" '
            f'hx-swap="outerHTML">Use this answer</button>\n{_COPY}'
        )
    if a.state != "error" or a.retryable:
        said = "Retry" if a.state == "error" else "Regenerate"
        out.append(
            '<button type="button" class="regenerate" data-do="regenerate" hx-post '
            'hx-include="#model" hx-target="closest .exchange" '
            f'hx-swap="outerHTML">{said}</button>\n'
        )
    if a.broken or (a.id and a.state != "done"):
        out.append(_DISCARD)
    return "".join(out)


def _fold(stream_id: str, fold: FoldView) -> str:
    at = f"fold-{escape(stream_id)}-{escape(fold.key)}"
    took = f' <span class="took">{escape(fold.took)}</span>' if fold.took else ""
    if fold.state == "running":
        took = f'<span class="elapsed" data-age="{fold.age:.1f}"></span>'
    result = ""
    if fold.kind == "tool":
        result = f'<div class="result" id="{at}-result">{escape(fold.result)}</div>'
    return (
        f'<details class="fold {escape(fold.kind)}" id="{at}">\n'
        f'<summary id="{at}-summary"><span class="label" data-state="{escape(fold.state)}">'
        f"{escape(fold.label)}</span>{took}</summary>\n"
        f'<div class="folded" id="{at}-text">{escape(fold.text)}</div>\n'
        f"{result}</details>"
    )


def _link(words: str, url: str) -> str:
    return (
        f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer nofollow">'
        f"{escape(words)}</a>"
    )


def _below(below: BelowView) -> str:
    out = [
        f'<p class="picture">[{_link(words, url) if url else escape(words)}]</p>'
        for words, url in below.pictures
    ]
    if below.sources:
        listed = "".join(f"<li>{_link(words, url)}</li>" for words, url in below.sources)
        out.append(
            '<section class="sources" aria-label="Sources"><p>Sources</p>\n'
            f"<ol>{listed}</ol></section>"
        )
    return "".join(out)

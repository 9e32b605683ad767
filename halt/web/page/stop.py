"""The HTML of an answer after a Stop, made of plain strings.

It equals the output of `answer.html` for an answer that has ended; a test compares them. Templates
are not used, because the path of a Stop must not wait for one.
"""

from __future__ import annotations

import html

from flask import current_app, request
from markupsafe import escape

from halt.core.receipts import Receipt
from halt.errors import StoreUnavailable, UnknownStream
from halt.store.models import Exchange
from halt.web.identity import stream_key
from halt.web.page.endings import answer_ending, answer_name
from halt.web.page.icons import icon
from halt.web.page.sources import below_html
from halt.web.page.views import AnswerView, StepView, view
from halt.web.page.writer import answer_replacement, lost_message
from halt.web.services import services

#: Seconds that a Stop waits for the highlighting of code in the answer.
STOP_WAIT = 0.2


def stop_fragment(receipt: Receipt) -> str:
    """The stopped answer, which replaces the answer on the page."""
    page_shows_it = request.form.get("shown")
    if receipt.note:
        note = html.escape(receipt.note)
        return f'<p class="fault" role="alert" data-code="store_unavailable">{note}</p>'
    if receipt.status == "pending" and not page_shows_it:
        return ""  # it has not begun; the response to its start will show the Stop
    try:
        run = services().generations.get(stream_key(receipt.id))
    except UnknownStream:
        # The stream belongs to another person or is no longer kept.
        return lost_message(receipt.id) if page_shows_it else ""
    except StoreUnavailable:
        return ""  # it was stopped nevertheless; the page keeps its text
    answer_progress, rendering = (
        services().chat.answer_progress,
        services().renderer.with_deadline(STOP_WAIT),
    )
    exchange = Exchange("", run.id, requested_model=run.requested_model)
    answer = view(exchange, run, answer_progress, rendering, receipt)
    if answer.state == "running":  # of another worker, whose end has not arrived here yet
        template = current_app.jinja_env.get_template("answer.html")
        return answer_replacement(run.id, template.render(a=answer))
    return answer_replacement(run.id, ended_answer(answer))


def ended_answer(a: AnswerView) -> str:
    """The HTML of an answer as `answer.html` renders it, in any state but `running`."""
    id_, model_name, state = escape(a.id), escape(a.requested_model), escape(a.state)
    return (
        f'<article class="answer" id="a-{id_}" aria-label="Answer" data-stream="{id_}" '
        f'data-model="{model_name}" data-state="{state}"{"" if a.is_complete else " data-cut"}>\n'
        f"{answer_name(current_app.jinja_env, a)}\n"
        f'<div class="steps" id="earlier-{id_}" hx-preserve>'
        f"{''.join(_step(f'{a.id}-earlier', step) for step in a.earlier_steps)}</div>\n"
        f'<div class="steps" id="steps-{id_}">'
        f"{''.join(_step(a.id, step) for step in a.steps)}</div>\n"
        f'<div class="{a.text_class}"><div id="done-{id_}">{a.patch.finished}</div></div>\n'
        f'<div class="below" id="earlier-below-{id_}" hx-preserve>'
        f"{below_html(a.earlier_below)}</div>\n"
        f'<div class="below" id="below-{id_}">{below_html(a.below)}</div>\n'
        f"{answer_ending(a)}\n</article>"
    )


def _step(stream_id: str, step: StepView) -> str:
    at = f"step-{escape(stream_id)}-{escape(step.key)}"
    duration_html = f" · {escape(step.took)}" if step.took else ""
    if step.state == "running":
        duration_html = f'<span class="elapsed" data-age="{step.age:.1f}"></span>'
    drawn_icon = icon(step.icon) if step.icon else ""
    result = ""
    if step.kind == "tool":
        result = f'<div class="result" id="{at}-result">{escape(step.result)}</div>'
    return (
        f'<details class="step {escape(step.kind)}" id="{at}">\n'
        f'<summary id="{at}-summary"><span class="label" data-state="{escape(step.state)}">'
        f"{drawn_icon}{escape(step.label)}</span>{duration_html}</summary>\n"
        f'<div class="step-text" id="{at}-text">{escape(step.text)}</div>\n'
        f"{result}</details>"
    )

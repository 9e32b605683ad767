"""The HTML below the text of an ended answer: the note, what can be done, versions and figures.

It is made of plain strings, because the response to a Stop must not wait for a template;
`answer.html` and `exchange.html` use the same functions. The buttons take their data from the
enclosing exchange: the end of an answer is rendered from its stream alone.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, pass_environment
from markupsafe import Markup, escape

from halt.chat.figures import Figures
from halt.store.models import Versions
from halt.web.page.end_notes import NoteView
from halt.web.page.icons import icon
from halt.web.page.sources import below_html
from halt.web.page.views import AnswerView

#: Icons of the notes, by their kind.
_NOTE_ICONS = {
    **dict.fromkeys(("stopped", "limit"), "octagon"),
    **dict.fromkeys(("cut", "interrupted", "lost"), "info"),
    "fault": "triangle-alert",
}

#: Buttons of notes for what has to be changed before another attempt.
_OPENERS = {
    "": "",
    "models": '<button type="button" popovertarget="models">Choose a model</button>',
    "settings": '<button type="button" class="opens-settings" aria-haspopup="dialog" '
    'data-at="#settings-max_tokens">Chat settings</button>',
}

_ALL_WORDS = "Show the server's whole answer"


def install(environment: Environment) -> None:
    """Let the templates use the functions."""
    functions = (answer_ending, answer_name, below_html, icon, versions_slot, versions_switcher)
    for function in functions:
        environment.globals[function.__name__] = function


@pass_environment
def answer_name(environment: Environment, a: AnswerView) -> Markup:
    """The model's name, as the picker writes it, then its provider.

    The environment's function `shown_name` knows the names of models that are in a list.
    """
    model = a.requested_model or a.model or "Default model"
    provider, _, name = model.partition("/") if "/" in model else ("", "", model)
    shown_name: Any = environment.globals.get("shown_name", _unlisted)
    label, title = shown_name(model)
    if label != model:
        provider, name = title if provider else "", label
    at = f" <small>{escape(provider)}</small>" if provider else ""
    return Markup(f'<p class="name">{escape(name)}{at}</p>')  # noqa: S704 - escaped


def _unlisted(model: str) -> tuple[str, str]:
    return model, ""


def answer_ending(a: AnswerView) -> Markup:
    """All that follows the text, in any state but `running`."""
    return Markup(  # noqa: S704 - escaped
        f'{_note(a)}<footer>\n<div class="actions">{_actions(a)}</div>\n'
        f"{versions_slot(a)}{_figures(a)}</footer>\n"
        f'<template class="source">{escape(a.source)}</template>'
        f"{pictures_slot(a.id, a.pictures_address)}"
    )


def pictures_slot(stream_id: str, address: str, delay: str = "") -> Markup:
    """The element that requests an answer's pictures, "" where none are awaited."""
    if not address:
        return Markup()
    return Markup(  # noqa: S704 - escaped
        f'<div id="pictures-{escape(stream_id)}" hidden hx-get="{escape(address)}" '
        f'hx-trigger="load{delay}" hx-swap="none"></div>'
    )


def pictures_slot_message(stream_id: str, slot: str) -> str:
    """What replaces the element that requests an answer's pictures."""
    target = f"#pictures-{escape(stream_id)}"
    return f'<hx-partial hx-target="{target}" hx-swap="outerHTML">{slot}</hx-partial>'


def pictures_messages(a: AnswerView) -> str:
    """The parts of an answer that its pictures change."""
    id_ = escape(a.id)
    source = f'<template class="source">{escape(a.source)}</template>'
    parts = (
        (f"#done-{id_}", "outerHTML", f'<div id="done-{id_}">{a.patch.finished}</div>'),
        (f"#earlier-below-{id_}", "innerHTML", ""),
        (f"#below-{id_}", "innerHTML", below_html(a.below)),
        (f"#a-{id_} > .source", "outerHTML", source),
    )
    return pictures_slot_message(a.id, "") + "".join(
        f'<hx-partial hx-target="{target}" hx-swap="{swap}">{content}</hx-partial>'
        for target, swap, content in parts
    )


def versions_slot(a: AnswerView) -> Markup:
    """The answer's versions. Where they are not known, the page keeps those that it has."""
    at = f'<div class="answer-versions" id="versions-{escape(a.id)}"'
    if a.versions is None:
        return Markup(f"{at} hx-preserve></div>")  # noqa: S704 - escaped
    return Markup(f"{at}>{versions_switcher(a.versions, 'answer')}</div>")  # noqa: S704


def versions_switcher(v: Versions, noun: str) -> Markup:
    """The number of this version, and buttons to the others; "" if there is only one."""
    if len(v.ids) < 2:
        return Markup()

    def button(message_id: int | None, name: str, icon_name: str) -> str:
        return (
            '<button type="button" class="icon-button version" data-do="show" name="message_id" '
            f'value="{message_id or ""}" aria-label="{name} version"'
            f'{"" if message_id else " disabled"} hx-post hx-target="closest .exchange" '
            f'hx-swap="outerHTML">{icon(icon_name)}</button>'
        )

    return Markup(  # noqa: S704 - numbers
        f'<span class="versions" role="group" aria-label="Versions of the {noun}">'
        f"{button(v.earlier, 'Previous', 'chevron-left')}"
        '<span class="number"><span class="hidden">Version </span>'
        f"{v.number} of {len(v.ids)}</span>"
        f"{button(v.later, 'Next', 'chevron-right')}</span>"
    )


def _note(a: AnswerView) -> str:
    if a.note is None:
        return ""
    return (
        f'<div class="note {a.note.kind}">{icon(_NOTE_ICONS[a.note.kind])}'
        f'<div class="note-text">{_note_text(a.note)}</div>'
        f"{_note_action(a)}{_OPENERS[a.note.opens]}</div>\n"
    )


def _note_text(note: NoteView) -> str:
    words = f" “{note.words}”" if note.words else ""
    parts = [f'<p class="note-title">{escape(note.title)}{escape(words)}</p>']
    if note.all_words:
        parts.append(
            f'<details class="all-words"><summary>{_ALL_WORDS}</summary>'
            f'<p tabindex="0">{escape(note.all_words)}</p></details>'
        )
    if note.text:
        parts.append(f'<p class="note-more">{escape(note.text)}</p>')
    if note.facts:
        parts.append(f'<p class="note-more">{escape(" · ".join(note.facts))}</p>')
    if note.request_id:
        copy = _icon_button("copy", "Copy the request ID", "copy", ' data-copy="id"')
        parts.append(
            f'<p class="note-more request-id">Request ID: <code>{escape(note.request_id)}</code>'
            f"{copy}</p>"
        )
    return "".join(parts)


def _note_action(a: AnswerView) -> str:
    if a.has_partial_text:
        return (
            '<button type="button" class="continue" data-do="continue" hx-post '
            'hx-target="closest article" hx-swap="outerHTML">Continue</button>'
        )
    return _regenerate("regenerate", "Try again") if _is_retried(a) else ""


def _is_retried(a: AnswerView) -> bool:
    """Whether the note has the button that writes the answer again."""
    return a.state == "error" and not a.has_partial_text


def _regenerate(css_class: str, content: str, label: str = "") -> str:
    name = f' aria-label="{label}" title="{label}"' if label else ""
    return (
        f'<button type="button" class="{css_class}" data-do="regenerate"{name} hx-post '
        'hx-include="#model" hx-target="closest .exchange" '
        f'hx-swap="outerHTML">{content}</button>'
    )


def _icon_button(css_class: str, label: str, icon_name: str, attributes: str = "") -> str:
    return (
        f'<button type="button" class="icon-button {css_class}" aria-label="{label}" '
        f'title="{label}"{attributes}>{icon(icon_name)}</button>'
    )


def _actions(a: AnswerView) -> str:
    parts = []
    if a.source:
        parts.append(_icon_button("copy", "Copy", "copy", ' data-copy="answer"'))
    if not _is_retried(a):
        parts.append(_regenerate("icon-button regenerate", icon("rotate-cw"), "Write again"))
    if a.source:
        parts.append(_icon_button("edit-answer", "Edit answer", "pencil"))
    if a.has_partial_text or a.is_edited or (a.id and a.state != "done"):
        request = ' data-do="discard" hx-post hx-target="closest .exchange" hx-swap="outerHTML"'
        parts.append(_icon_button("discard", "Discard", "trash-2", request))
    if a.source:
        parts.append(
            '<button type="button" class="pick" data-do="pick" name="stream_id" '
            f'value="{escape(a.id)}" hx-post hx-target="closest .exchange" '
            'hx-swap="outerHTML">Use this answer</button>'
        )
    return "".join(parts)


def _figures(a: AnswerView) -> str:
    if a.is_edited:
        return '<p class="edited">Edited<span class="wide"> by you</span></p>'
    f: Figures = a.figures
    if not f.rows:
        return ""
    more = f'<span class="wide"> · {escape(f.more)}</span>' if f.more else ""
    rows = "".join(f"<dt>{escape(name)}</dt> <dd>{escape(text)}</dd>\n" for name, text in f.rows)
    return (
        f'<details class="figures" name="figures"><summary>{escape(f.short)}{more}</summary>'
        f"<dl>{rows}</dl></details>"
    )

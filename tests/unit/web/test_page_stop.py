"""An ended answer that is built from strings equals the output of its template."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from flask import render_template
from jinja2 import Environment
from markupsafe import Markup

from halt.app import create_app
from halt.chat.figures import Figures
from halt.config.settings import Config
from halt.rendering.streaming.blocks import Patch
from halt.web.page.end_notes import NoteView
from halt.web.page.endings import answer_name
from halt.web.page.sources import BelowView, Source
from halt.web.page.stop import ended_answer
from halt.web.page.views import AnswerView, StepView

HOSTILE = "<i>\"'&\n  {{ 7 }}"
FOLDS = tuple(
    StepView(str(n), kind, state, icon, HOSTILE, took, 1.26, Markup("<b>t</b>"), Markup("&lt;r"))
    for n, (kind, state, icon, took) in enumerate(
        itertools.product(
            ("thought", "tool"), ("running", "done", "failed"), ("", "check"), ("", "1.2 s")
        )
    )
)
NOTES = (
    None,
    NoteView("stopped", HOSTILE),
    NoteView("fault", HOSTILE, HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE)),
)
KINDS_BELOW = BelowView(
    ((HOSTILE, ""), ("cat", "https://a.example/?x=1&y=\"'")),
    tuple(Source(HOSTILE, url, HOSTILE) for url in ("u", HOSTILE, "", *"abcdef")),
)


@pytest.mark.parametrize("state", ["done", "stopped", "withdrawn", "interrupted", "error"])
def test_ended_answer_equals_the_template(tmp_path: Path, state: str) -> None:
    """`ended_answer` equals the template's output in every state and with every part."""
    app = create_app(Config(base_url="http://127.0.0.1:9/v1", api_key="fake", data=str(tmp_path)))
    views = [
        AnswerView(
            id=stream_id,
            state=state,
            patch=Patch(finished=f"<p>{text}</p>\n", replaces_tail=True, tail="", form="text"),
            source=text,
            requested_model=requested_model,
            model=model,
            note=note,
            is_complete=not flag,
            has_partial_text=has_partial_text,
            figures=figures,
            steps=folds,
            earlier_steps=folds[:1],
            below=below,
            earlier_below=below,
        )
        for stream_id, text, (
            requested_model,
            model,
        ), note, flag, has_partial_text, figures, folds, below in (
            itertools.product(
                ("stream-1", ""),
                ("", HOSTILE),
                (("", ""), (HOSTILE, ""), ("", HOSTILE)),
                NOTES,
                (False, True),
                (False, True),
                (Figures(), Figures(HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),))),
                ((), FOLDS),
                (
                    BelowView(),
                    KINDS_BELOW,
                    BelowView(KINDS_BELOW.pictures),
                    BelowView((), KINDS_BELOW.sources),
                ),
            )
        )
    ]
    hebrew, long = "<p>שלום</p>", f"<p>{'word ' * 12_000}</p>"
    views += [replace(views[0], patch=replace(views[0].patch, finished=x)) for x in (hebrew, long)]
    with app.test_request_context():
        for view in views:
            assert ended_answer(view) == render_template("answer.html", a=view)


def test_answer_has_the_name_that_was_chosen_for_its_model() -> None:
    """A model of no list keeps its own name, and its provider's short one."""
    environment = Environment(autoescape=True)
    answer = AnswerView("s", "done", Patch("", replaces_tail=True, tail="", form="text"))

    def name_of(model: str) -> str:
        return answer_name(environment, replace(answer, requested_model=model))

    assert name_of("second/oak") == '<p class="name">oak <small>second</small></p>'
    environment.globals["shown_name"] = {
        "second/oak": ("Old <oak>", "Second server"),
        "elm": ("Elm tree", "First server"),
        "ash": ("ash", "First server"),
    }.__getitem__
    assert name_of("second/oak") == (
        '<p class="name">Old &lt;oak&gt; <small>Second server</small></p>'
    )
    assert name_of("elm") == '<p class="name">Elm tree</p>'
    assert name_of("ash") == '<p class="name">ash</p>'

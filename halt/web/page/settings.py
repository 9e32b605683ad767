"""The settings panel of a conversation: model, system prompt, temperature, max tokens."""

from __future__ import annotations

from flask import Response, render_template, request, url_for

from halt.chat.settings import settings_from_form
from halt.core.decoding import checked_id
from halt.providers.catalog import valid_model_name
from halt.store.models import Settings
from halt.web.page.models import listed as listed_models
from halt.web.services import services
from halt.web.sessions import ensure_owner, owner


def first_settings() -> str:
    """The settings panel of a new conversation."""
    return _panel(Settings())


def settings(conversation_id: str) -> str:
    """The settings panel of a conversation."""
    return _panel(
        services().store.conversations.get(conversation_id, owner() or "", limit=1).settings
    )


def save_settings(conversation_id: str) -> Response:
    """Save a conversation's settings; they apply from the next answer. Raises RequestError."""
    checked_id(conversation_id, "conversation_id")
    # The form was filled with the prompt of the model that was selected when it was opened.
    model_prompt = services().chat.system_prompt(request.form.get("model"))
    demo_prompt = services().chat.system_prompt(services().config.embedded_model)
    new_settings = settings_from_form(request.form, model_prompt, demo_prompt)
    store = services().store.conversations
    saved = store.set_settings(conversation_id, ensure_owner(), new_settings).settings
    html = render_template(
        "settings_saved.html",
        **listed_models(saved.model),
        system_prompt=services().chat.system_prompt(saved.model, saved.system_prompt),
    )
    response = Response(html, mimetype="text/html")
    response.headers["HX-Push-Url"] = url_for(
        "pages.show_conversation", conversation_id=conversation_id
    )
    return response


def _panel(saved: Settings) -> str:
    picked = request.args.get("model")  # the page's picker may differ from the saved model
    model_name = saved.model if picked is None else valid_model_name(picked)
    return render_template(
        "settings.html",
        s=saved,
        system_prompt=services().chat.system_prompt(model_name),
        **listed_models(model_name),
    )

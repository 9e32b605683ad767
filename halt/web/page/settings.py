"""The settings panel of a conversation, and the named prompts and presets that it offers.

Every response is an HTML fragment. An error is shown below the field that it names.
"""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Flask, Response, render_template, request, url_for

from halt.chat.presets import BUILT_IN
from halt.chat.prompts import PromptNames
from halt.chat.settings import checked_sampling, preset_from_form, settings_from_form
from halt.config.settings import SAVED_NAME_MAX
from halt.core.decoding import checked_id
from halt.errors import HaltError, NameTaken, RequestError
from halt.providers.catalog import valid_model_name
from halt.store.models import Preset, Settings, UnknownConversation
from halt.web.identity import owner
from halt.web.page.models import listed as listed_models
from halt.web.requests import wants_fragment
from halt.web.responses import error_response
from halt.web.services import services

#: Fields of the panel that have a place for an error of their own. `name` has one in each part.
FIELDS = frozenset({"model", "system_prompt", "temperature", "top_p", "max_tokens"})

blueprint = Blueprint("settings", __name__)


def install(app: Flask) -> None:
    """Install the routes, and the function that templates use, in the application."""
    app.jinja_env.globals["offers_prompts"] = offers_prompts
    app.jinja_env.globals["SAVED_NAME_MAX"] = SAVED_NAME_MAX
    app.register_blueprint(blueprint)


def offers_prompts() -> bool:
    """Whether the person can choose a system prompt by name; true while the store is down."""
    try:
        names = services().prompts.names(owner())
    except HaltError:
        return True
    return bool(names.server or names.own)


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> Response:
    if isinstance(error, NameTaken) and wants_fragment():
        html = render_template("settings_name_taken.html", message=error.message, kind=_part())
        response = Response(html, error.status, mimetype="text/html")
        response.headers["HX-Reswap"] = "innerHTML"
    else:
        response = error_response(error)
    if wants_fragment():
        response.headers["HX-Retarget"] = f"#{_fault_place(error.field)}"
    return response


def _fault_place(field: str | None) -> str:
    """The ID of the element below a field that shows its error."""
    if field == "name" and (part := _part()) in {"prompt", "preset"}:
        return f"fault-{part}-name"
    return f"fault-{field}" if field in FIELDS else "settings-fault"


def _part() -> str:
    """The last word of the route's name: "prompt" of `save_prompt`, "preset" of `delete_preset`."""
    return (request.endpoint or "").rpartition("_")[2]


# --- the panel ------------------------------------------------------------------------------------


@blueprint.get("/settings")
def first_settings() -> str:
    """The settings panel of a new conversation."""
    return _panel(Settings())


@blueprint.get("/c/<conversation_id>/settings")
def settings(conversation_id: str) -> str:
    """The settings panel of a conversation."""
    return _panel(services().store.conversations.get(conversation_id, owner(), limit=1).settings)


@blueprint.post("/c/<conversation_id>/settings")
def save_settings(conversation_id: str) -> Response:
    """Save a conversation's settings; they apply from the next answer. Raises RequestError."""
    checked_id(conversation_id, "conversation_id")
    owner_id, chat = owner(), services().chat
    # The form was filled with the prompt of the model that was selected when it was opened.
    model_prompt = chat.system_prompt(request.form.get("model"))
    demo_prompt = chat.system_prompt(services().config.embedded_model)
    new_settings = settings_from_form(request.form, model_prompt, demo_prompt)
    store = services().store.conversations
    if new_settings.prompt_name:
        try:
            before = store.get(conversation_id, owner_id, limit=1).settings
        except UnknownConversation:  # a new conversation
            before = Settings()
        new_settings = services().prompts.with_valid_name(owner_id, new_settings, before)
    saved = store.set_settings(conversation_id, owner_id, new_settings).settings
    html = render_template(
        "settings_saved.html",
        **listed_models(saved.model),
        system_prompt=chat.system_prompt(saved.model, saved.system_prompt),
        prompt_name=saved.prompt_name,
    )
    response = Response(html, mimetype="text/html")
    response.headers["HX-Push-Url"] = url_for(
        "pages.show_conversation", conversation_id=conversation_id
    )
    return response


def _panel(saved: Settings) -> str:
    picked = request.args.get("model")  # the page's picker may differ from the saved model
    model_name = saved.model if picked is None else valid_model_name(picked)
    default_prompt = services().chat.system_prompt(model_name)
    return render_template(
        "settings.html",
        **_prompt_part(saved.prompt_name, saved.system_prompt, default_prompt),
        **_sampling_part(Preset("", saved.temperature, saved.top_p, saved.max_tokens)),
        **listed_models(model_name),
    )


# --- named prompts --------------------------------------------------------------------------------


@blueprint.get("/settings/prompts/text")
def prompt_text() -> str:
    """The field of the system prompt, filled with a named prompt, or with the default for ""."""
    name, default_prompt = request.args.get("prompt_name", ""), _default_prompt()
    text = services().prompts.text(owner(), name) if name else default_prompt
    if text is None:
        raise RequestError(
            "This prompt no longer exists. Choose another one.", field="system_prompt"
        )
    return _render_prompt_part("settings_prompt_text.html", name or None, text, default_prompt)


@blueprint.post("/settings/prompts")
def save_prompt() -> str:
    """Save the text as a prompt of the person. Raises RequestError, NameTaken."""
    text = request.form.get("system_prompt", "")
    name = services().prompts.save(
        owner(), request.form.get("name", ""), text, replace="replace" in request.form
    )
    return _render_prompt_part("settings_prompt.html", name, text, _default_prompt())


@blueprint.post("/settings/prompts/delete")
def delete_prompt() -> str:
    """Delete a prompt of the person; its text stays in the field. Raises RequestError."""
    text = request.form.get("system_prompt", "")
    services().prompts.delete(owner(), request.form.get("prompt_name", ""))
    return _render_prompt_part("settings_prompt.html", None, text, _default_prompt())


def _default_prompt() -> str:
    return services().chat.system_prompt(valid_model_name(request.values.get("model", "")))


def _render_prompt_part(template: str, name: str | None, text: str, default_prompt: str) -> str:
    return render_template(template, **_prompt_part(name, text, default_prompt))


def _prompt_part(name: str | None, text: str | None, default_prompt: str) -> dict[str, object]:
    """The variables of `settings_prompt.html`. `text` is None for the default."""
    names: PromptNames = services().prompts.names(owner())
    shown_text = default_prompt if text is None else text
    is_written = name is None and shown_text.strip() != default_prompt.strip()
    return {
        "names": names,
        "prompt_name": name,
        "prompt_text": shown_text,
        "default_prompt": default_prompt,
        "is_none": is_written and not shown_text.strip(),
        "is_written": is_written and bool(shown_text.strip()),
    }


# --- presets --------------------------------------------------------------------------------------


@blueprint.post("/settings/presets")
def save_preset() -> str:
    """Save the sampling settings as a preset of the person. Raises RequestError, NameTaken."""
    preset = services().presets.save(
        owner(), preset_from_form(request.form), replace="replace" in request.form
    )
    return render_template("settings_sampling.html", **_sampling_part(preset))


@blueprint.post("/settings/presets/delete")
def delete_preset() -> str:
    """Delete a preset of the person; its values stay in the fields."""
    values = replace(preset_from_form(request.form), name="")
    checked_sampling(values)
    services().presets.own.delete(owner(), request.form.get("preset", ""))
    return render_template("settings_sampling.html", **_sampling_part(values))


def _sampling_part(values: Preset) -> dict[str, object]:
    """The variables of `settings_sampling.html`. `selected`: a preset's name, "" for none.

    Without a name in `values`, the first preset with these values is selected.
    """
    own = services().presets.own.all(owner())
    same = (preset.name for preset in (*BUILT_IN, *own) if replace(preset, name="") == values)
    selected = values.name or next(same, "")
    return {"values": values, "built_in": BUILT_IN, "own_presets": own, "selected": selected}

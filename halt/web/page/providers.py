"""The page Models: providers with their state and models, and the forms that connect them.

The page works without scripts: each change is a form, whose field `do` names it. The response to a
change is a redirect to a page that says what was done, or the form with the error at its field. A
key that was typed is in no response.

The person of the mode `mine` and administrators may change all of it. With HALT_OWN_KEYS everybody
else may save a key of their own, for the providers that take one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, abort, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from halt.connected.details import KEY_MAX, TITLE_MAX
from halt.connected.listing import ProviderLine
from halt.connected.presets import PRESETS
from halt.errors import HaltError, RequestError
from halt.web.identity import may_manage, owner, save_person
from halt.web.page import model_rows, provider_trials
from halt.web.page.account import is_program
from halt.web.page.provider_forms import (
    Fault,
    ProviderForm,
    new_form,
    saved_form,
    state_of,
    typed_details,
    typed_form,
)
from halt.web.requests import is_plain_form_post
from halt.web.responses import RequestRefused, error_page, error_response
from halt.web.services import services

WAIT = 1.0  # seconds that a page waits for the answers of providers
OVERVIEW_MODELS = 5  # of each provider

#: What the page says after a change.
DONE = {
    "added": "Connected. It is in the list of models now, in every browser.",
    "changed": "Saved. Answers that are being written go on to their end.",
    "removed": "Removed, with its keys. Answers that are being written go on to their end.",
    "own-key": "Your key is saved. Your next message uses it.",
    "no-own-key": "Your key is removed.",
    **model_rows.DONE,
}
NOT_YET = "Saved. It does not work yet: see below."  # in place of "added"

Answer = BaseResponse | str

blueprint = Blueprint("providers", __name__, url_prefix="/settings/models")


def install(app: Flask) -> None:
    """Install the routes, and the functions that templates use, in the application."""
    app.jinja_env.globals["may_manage"] = may_manage
    app.jinja_env.globals["has_models_page"] = has_models_page
    app.jinja_env.globals["model_words"] = model_rows.words
    app.register_blueprint(blueprint)


# --- who ------------------------------------------------------------------------------------------


def has_models_page() -> bool:
    """Whether the page exists for the person."""
    return may_manage() or (services().config.own_keys and services().mode != "anonymous")


@blueprint.before_request
def _check() -> None:
    """Refuse the page to whom it does not concern, and to programs."""
    if not has_models_page():
        abort(404)
    if is_program():
        raise RequestRefused(
            403, "browsers_only", "The page “Models” is for browsers: no API token may use it."
        )
    services().connected.look()  # another worker may have made the change before this request


def _check_manager() -> None:
    if not may_manage():
        abort(404)


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> BaseResponse:
    """The page with the error, if a person's browser has sent a form and the page can be made."""
    page = _PAGES.get(request.endpoint or "")
    if page is None or "person" not in g or is_program() or not is_plain_form_post():
        return error_response(error)
    form = request.form
    of = form.get("model") or form.get("provider", "")
    try:
        html = page(Fault(form.get("do", ""), error.field, error.message, of))
    except HaltError:  # such as a provider that was removed meanwhile
        return error_response(error)
    return error_page(html, error)


# --- all providers --------------------------------------------------------------------------------


@blueprint.get("")
def show() -> str:
    """All providers. `done` names the change that was made last."""
    services().providers_listing.ask_again(WAIT)
    return _overview()


@blueprint.post("")
def change() -> Answer:
    """Save or remove the person's own key. Raises RequestError."""
    provider, action = request.form.get("provider", ""), request.form.get("do", "")
    if action == "own-key":
        save_person()
        services().connected.save_own_key(provider, owner(), request.form.get("key", ""))
    elif action == "no-own-key":
        services().connected.remove_own_key(provider, owner())
    else:
        raise RequestError("do must be own-key or no-own-key.", field="do")
    return redirect(url_for("providers.show", done=action), 303)


def _overview(fault: Fault | None = None) -> str:
    lines = _lines()
    return render_template(
        "providers.html",
        lines=lines if may_manage() else [],
        taking_keys=[line for line in lines if line.takes_own_keys],
        locked=services().catalog.locked_servers if may_manage() else (),
        fixed_default=model_rows.fixed_default(),
        key_max=KEY_MAX,
        shown=OVERVIEW_MODELS,
        done=_done_text(),
        fault=fault,
    )


# --- one more provider ----------------------------------------------------------------------------


@blueprint.get("/add/<preset>")
def add(preset: str) -> str:
    """The form of a further provider. `address`: of a server that was found; nothing calls it."""
    _check_manager()
    if preset not in PRESETS:
        abort(404)
    return _add_page(form=new_form(preset, request.args.get("address", "")))


@blueprint.post("/add/<preset>")
def connect(preset: str) -> Answer:
    """Connect the provider. Raises RequestError."""
    _check_manager()
    row = services().connected.add(typed_details(request.form))
    return redirect(url_for("providers.provider", name=row.name, done="added"), 303)


def _add_page(fault: Fault | None = None, form: ProviderForm | None = None, **more: Any) -> str:
    return render_template(
        "providers_add.html",
        presets=PRESETS.values(),
        form=form or typed_form(request.form),
        **_form_variables(),
        fault=fault,
        **more,
    )


@blueprint.post("/try/add/<preset>")
def try_new(preset: str) -> Answer:
    """Try what was typed for a further provider. Raises RequestError."""
    _check_manager()
    return provider_trials.results(provider_trials.start(typed_details(request.form)), _add_page)


# --- one provider ---------------------------------------------------------------------------------


@blueprint.get("/<name>")
def provider(name: str) -> Answer:
    """A provider. `q`: words that the shown models have; `page`: of the models, from 1."""
    _check_manager()
    if name == "add" and not _has(name):
        preset, address = request.args.get("preset", "compatible"), request.args.get("address")
        return redirect(url_for("providers.add", preset=preset, address=address))
    if "done" not in request.args:
        services().providers_listing.ask_again(WAIT, name)
    return _provider_page()


@blueprint.post("/<name>")
def change_provider(name: str) -> Answer:
    """Make the change of the provider, or of one of its models. Raises RequestError."""
    _check_manager()
    action, connected = request.form.get("do", ""), services().connected
    if action == "change":
        line = line_of(name, wait=0.0)
        if request.form.get("seen", state_of(line)) != state_of(line):
            raise RequestError(
                "Somebody else has changed this provider meanwhile. Look at what is saved, then "
                "save again."
            )
        connected.change(name, typed_details(request.form))
        return redirect(url_for("providers.provider", name=name, done="changed"), 303)
    if action == "remove":
        connected.remove(name)
        return redirect(url_for("providers.show", done="removed"), 303)
    return model_rows.change(line_of(name), action)


@blueprint.post("/try/<name>")
def try_changed(name: str) -> Answer:
    """Try what was typed for a provider that is changed. Raises RequestError."""
    _check_manager()
    trial = provider_trials.start(typed_details(request.form), name)
    return provider_trials.results(trial, _provider_page)


@blueprint.get("/model/<name>")
def model(name: str) -> str:
    """The form of the provider's model that `model` names."""
    _check_manager()
    return model_rows.model_page(line_of(name), request.args.get("model", ""), None)


@blueprint.post("/model/<name>")
def change_model(name: str) -> Answer:
    """Save what was chosen for a model. Raises RequestError."""
    _check_manager()
    return model_rows.save(line_of(name), request.form.get("model", ""))


def _provider_page(fault: Fault | None = None, **more: Any) -> str:
    line = line_of((request.view_args or {})["name"])
    is_new = request.args.get("done") == "added"
    form = saved_form(line.row, line.header_names) if line.row is not None else None
    if request.form.get("do") in {"change", "try"}:
        form = typed_form(request.form)
    return render_template(
        "providers_one.html",
        line=line,
        form=form,
        seen=state_of(line),
        **_form_variables(),
        is_new=is_new,
        is_key_lost=line.row is not None and services().connected.is_key_lost(line.row),
        done=NOT_YET if is_new and line.state == "fault" else _done_text(),
        fault=fault,
        **model_rows.listed(line),
        **more,
    )


def _model_page(fault: Fault) -> str:
    return model_rows.model_page(line_of((request.view_args or {})["name"]), fault.of, fault)


def _form_variables() -> dict[str, Any]:
    return {
        "title_max": TITLE_MAX,
        "key_max": KEY_MAX,
        "offers_own_keys": services().config.own_keys,
        "has_secrets": any(map(any, map(request.form.getlist, ("key", "header_value")))),
    }


def _lines(wait: float = WAIT) -> list[ProviderLine]:
    known = services()
    return known.providers_listing.lines(known.connected.snapshot, owner(), wait)


def line_of(name: str, wait: float = WAIT) -> ProviderLine:
    """The provider with this name. Raises RequestRefused."""
    line = next((line for line in _lines(wait) if line.name == name), None)
    if line is None:
        raise RequestRefused(404, "unknown_entry", "There is no provider with this name.")
    return line


def _has(name: str) -> bool:
    return any(line.name == name for line in _lines(0.0))


def _done_text() -> str:
    return DONE.get(request.args.get("done", ""), "")


#: The page that shows the error of a form, by the endpoint that the form was sent to.
_PAGES: dict[str, Callable[[Fault], str]] = {
    "providers.change": _overview,
    "providers.connect": _add_page,
    "providers.try_new": _add_page,
    "providers.change_provider": _provider_page,
    "providers.try_changed": _provider_page,
    "providers.change_model": _model_page,
}

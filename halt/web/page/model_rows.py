"""The models of one provider on its page: a list with a search, and the form of each model."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
from flask import redirect, render_template, request, url_for

from halt.connected.listing import ModelLine, ProviderLine
from halt.core.decoding import is_number
from halt.errors import RequestError
from halt.model_info import Abilities, ability_words
from halt.web.page.provider_forms import (
    EXTRA_MAX,
    LABEL_MAX,
    Fault,
    known_fields,
    model_form,
    typed_model,
    typed_model_form,
)
from halt.web.responses import RequestRefused
from halt.web.services import services

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as BaseResponse

PAGE = 100  # models
PAGE_MAX = 1_000_000
QUERY_MAX = 200  # characters

#: What the page says after a change.
DONE = {
    "hide": "Hidden. The model is in no list any more; requests may still name it.",
    "show": "Shown. The model is in the lists again.",
    "up": "Moved.",
    "down": "Moved.",
    "top": "Moved to the top.",
    "default": "This is the default model now.",
    "no-default": "This model is no longer the default.",
    "model": "Saved. It applies from the next message.",
}
MOVES = {"up", "down", "top"}


@dataclass(frozen=True)
class Row:
    """A model of the page's list. `place`: in the provider's list, from 0."""

    place: int
    model: ModelLine

    @property
    def id(self) -> str:
        return row_id(self.model.name)


def row_id(name: str) -> str:
    """The ID of a model's element: names have any characters."""
    return "m-" + blake2b(name.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()


def words(abilities: Abilities) -> str:
    """What a model can do and costs: "128k context, tools · $3 / $15 per million tokens"."""
    parts = [ability_words(abilities)]
    prices = abilities.input_price, abilities.output_price
    if prices != (None, None):
        parts.append(f"{' / '.join(map(_dollars, prices))} per million tokens")
    if abilities.cached_price is not None:
        parts.append(f"{_dollars(abilities.cached_price)} cached")
    return " · ".join(filter(None, parts))


def _dollars(price: float | None) -> str:
    """A price: whole, with cents, or with as many digits as a small one needs."""
    if price is None:
        return "?"
    if price == int(price):
        return f"${price:,.0f}"
    return f"${price:,.2f}" if round(price, 2) == price else f"${price:.6g}"


# --- the list -------------------------------------------------------------------------------------


def listed(line: ProviderLine) -> dict[str, Any]:
    """The variables of a provider's page on its models, by the parameters `q` and `page`."""
    query = request.args.get("q", "")[:QUERY_MAX].strip()
    number = request.args.get("page", "1")
    page = min(max(1, int(number)), PAGE_MAX) if is_number(number) else 1
    terms = query.casefold().split()
    rows = [
        Row(place, model)
        for place, model in enumerate(line.models)
        if all(term in _searched(model) for term in terms)
    ]
    page = min(page, max(1, -(-len(rows) // PAGE)))
    return {
        "rows": rows[(page - 1) * PAGE : page * PAGE],
        "found": len(rows),
        "last": len(line.models) - 1,
        "query": query,
        "page": page,
        "more": len(rows) > page * PAGE,
        "has_search": len(line.models) > PAGE or bool(query),
    }


def _searched(model: ModelLine) -> str:
    return f"{model.name} {model.label} {ability_words(model.abilities)}".casefold()


def change(line: ProviderLine, action: str) -> BaseResponse:
    """Make the change of the model that the form names. Raises RequestError."""
    if action not in DONE or action == "model":
        raise RequestError(f"do must be one of {', '.join(DONE)}.", field="do")
    model = _model_of(line, request.form.get("model", ""))
    connected = services().connected
    if action in {"hide", "show"}:
        settings = msgspec.structs.replace(model.chosen, hidden=action == "hide")
        connected.set_model(line.name, model.name, settings)
    elif action in MOVES:
        return _shown(line, model, action, _move(line, model, action))
    else:
        _check_default_is_free()
        connected.set_default((line.name, model.name) if action == "default" else None)
    return _shown(line, model, action)


def _move(line: ProviderLine, model: ModelLine, action: str) -> int:
    """Save the order after the move; return the model's new place."""
    names = [other.name for other in line.models]
    place = names.index(model.name)
    target = {"up": max(0, place - 1), "down": place + 1, "top": 0}[action]
    names.insert(target, names.pop(place))
    # Only as many as are needed: the others follow in the order of the provider's list.
    positioned = sum(
        row.position is not None
        for row in services().connected.snapshot.models
        if row.provider == line.name
    )
    services().connected.order_models(line.name, names[: max(place, target, positioned - 1) + 1])
    return min(target, len(names) - 1)


def _shown(line: ProviderLine, model: ModelLine, action: str, place: int = -1) -> BaseResponse:
    """The list again, at the model; after a move its page is that of its new place."""
    query = request.args.get("q") or None
    page = request.args.get("page") if place < 0 or query else place // PAGE + 1
    anchor = row_id(model.name)
    return redirect(
        url_for(
            "providers.provider", name=line.name, q=query, page=page, done=action, _anchor=anchor
        ),
        303,
    )


# --- one model ------------------------------------------------------------------------------------


def model_page(line: ProviderLine, name: str, fault: Fault | None) -> str:
    """The form of a model. Raises RequestRefused."""
    model = _model_of(line, name)
    if fault is None:
        form = model_form(model.chosen, model.abilities)
    else:
        form = typed_model_form(request.form, known_fields(model.abilities, model.chosen))
    return render_template(
        "providers_model.html",
        line=line,
        model=model,
        form=form,
        fixed_default=fixed_default(),
        is_chosen_default=services().connected.snapshot.default == (line.name, model.name),
        label_max=LABEL_MAX,
        extra_max=EXTRA_MAX,
        fault=fault,
    )


def save(line: ProviderLine, name: str) -> BaseResponse:
    """Save what was chosen for a model. Raises RequestError."""
    model = _model_of(line, name)
    known = known_fields(model.abilities, model.chosen)
    settings = typed_model(request.form, model.chosen, known)
    services().connected.set_model(line.name, model.name, settings)
    return _shown(line, model, "model")


def fixed_default() -> str:
    """The default model that the settings name, which cannot be changed here; "" for none."""
    return services().providers_listing.fixed_default


def _check_default_is_free() -> None:
    if model := fixed_default():
        raise RequestError(f"The settings say that {model} is the default model.", field="default")


def _model_of(line: ProviderLine, name: str) -> ModelLine:
    model = next((model for model in line.models if model.name == name), None)
    if model is None:
        raise RequestRefused(
            404, "unknown_entry", f"{line.title} does not list this model at the moment."
        )
    return model

"""The page's model picker, and whether the demo model is loaded."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from flask import render_template, request

from halt.core.connection import limited_connection
from halt.errors import Interrupted, StoreUnavailable, UpstreamError
from halt.model_info import ModelGroup, ability_words
from halt.providers.catalog import valid_model_name
from halt.store.models import Settings, UnknownConversation
from halt.web.identity import owner
from halt.web.page.no_model import offers
from halt.web.services import services

#: Timeout in seconds of the check whether the demo model is loaded.
DEMO_WAIT = 0.5

_CONVERSATION = re.compile(r"/c/[\w-]+/?(?:[?#]|$)")  # the end of its page's address


def models() -> str:
    """The options of the model picker; `model` stays selected if it is still offered.

    In a conversation it stays in any case: another model would get texts that were meant for it.
    `look`: look for model servers first. `empty`: the page says that no model is set up.
    """
    chosen = valid_model_name(request.args.get("model", ""))
    catalog = services().catalog
    has_looked = "look" in request.args
    if has_looked:
        catalog.look_again()
    values = listed(chosen, request.args.get("retry"))
    return render_template(
        "models_listed.html",
        **values,
        catalog=catalog,
        config=services().config,
        has_looked=has_looked,
        **offers(),
        has_notice=catalog.is_discovered or "empty" in request.args or not values["has_model"],
        loading=catalog.is_discovered and demo_is_loading(),
        **_prompt_with(chosen, request.args.get("conversation", "")),
    )


class Option(NamedTuple):
    """A model in the picker. `abilities`: short words with ", " between them."""

    name: str
    label: str
    abilities: str


class OptionGroup(NamedTuple):
    """The models of one provider in the picker."""

    title: str
    options: list[Option]


def listed(chosen: str, retried: str | None = None) -> dict[str, Any]:
    """The variables of `models.html`: the models, and the selected one.

    `retried`: see `Catalog.refresh`. `unlisted`: why the selected one is not among them.
    """
    catalog = services().catalog
    groups = [
        _option_group(group) for group in catalog.refresh(retried)
    ]  # updates the other values
    return {
        "groups": groups,
        "no_list": catalog.has_no_list,
        "notes": catalog.notes,
        "chosen": chosen,
        "unlisted": _unlisted(chosen, groups),
        **default_model(chosen),
    }


def _unlisted(chosen: str, groups: list[OptionGroup]) -> str:
    """Short words on a conversation's model that is not offered; "" if it is, or may change."""
    is_listed = any(option.name == chosen for group in groups for option in group.options)
    is_chat = _CONVERSATION.search(request.headers.get("HX-Current-URL", ""))
    if is_listed or not chosen or not (is_chat and groups):
        return ""
    return "hidden" if services().catalog.is_hidden(chosen) else "not offered"


def default_model(chosen: str = "") -> dict[str, Any]:
    """The variables of `models.html` on the model for requests that name none.

    `picked_label` and `picked_provider`: of the chosen model, else of that one. `has_model`: see
    `Catalog.has_model`.
    """
    catalog = services().catalog
    has_model = catalog.has_model  # may find one, so it is the first
    name = services().generations.upstream.known_model
    return {
        "has_model": has_model,
        "model": name,
        "default_label": catalog.label_of(name),
        "default_provider": catalog.provider_of(name),
        "picked_label": catalog.label_of(chosen or name),
        "picked_provider": catalog.provider_of(chosen or name),
    }


def _option_group(group: ModelGroup) -> OptionGroup:
    options = [Option(m.name, m.label, ability_words(m.abilities)) for m in group.models]
    return OptionGroup(group.title, options)


def demo() -> str:
    """The notice that the demo model is loading. The page polls it until it is loaded."""
    return render_template(
        "demo.html", loading=demo_is_loading(), catalog=services().catalog, **offers()
    )


def demo_is_loading() -> bool:
    """Whether the demo model does not respond yet. After its first response it is not checked."""
    ready = services().demo_ready
    if not services().config.has_demo or ready.is_set():
        return False
    try:
        with limited_connection(DEMO_WAIT) as connection:
            services().generations.upstream.check(connection)
    except UpstreamError as fault:
        if fault.code in {"model_loading", "upstream_refused"}:
            return True
    except Interrupted:
        return True
    ready.set()
    return False


def _prompt_with(model: str, conversation_id: str) -> dict[str, str | None]:
    """The variables of `system.html` for a conversation if it used this model.

    `system_prompt` is None where it is unknown. The demo model has its own default system prompt.
    """
    if not conversation_id:
        return {"system_prompt": None}
    try:
        conversation = services().store.conversations.get(conversation_id, owner(), limit=1)
        settings = conversation.settings
    except UnknownConversation:  # a new conversation
        settings = Settings()
    except StoreUnavailable:
        return {"system_prompt": None}
    return {
        "system_prompt": services().chat.system_prompt(model, settings.system_prompt),
        "prompt_name": settings.prompt_name,
    }

"""The page's picker of models, and whether the demo model is loaded."""

from __future__ import annotations

from typing import Any

from flask import render_template, request

from halt.core.connection import limited_connection
from halt.errors import Interrupted, StoreUnavailable, UpstreamError
from halt.providers.catalog import valid_model_name
from halt.store.models import UnknownConversation
from halt.web.services import services
from halt.web.sessions import owner

#: Seconds that a page waits for the demo model to say whether it is loaded.
DEMO_WAIT = 0.5


def models() -> str:
    """What can be chosen, as options; the one that is chosen stays so where it is still offered."""
    chosen = valid_model_name(request.args.get("model", ""))
    catalog = services().catalog
    return render_template(
        "models_listed.html",
        **listed(chosen),
        catalog=catalog,
        config=services().config,
        loading=catalog.is_discovered and demo_is_loading(),
        system_prompt=_prompt_with(chosen, request.args.get("conversation", "")),
    )


def listed(chosen: str) -> dict[str, Any]:
    """What `models.html` shows: the models, and the one that is chosen."""
    catalog = services().catalog
    return {
        "groups": catalog.refresh(),  # first: the others go by what it brings
        "no_list": catalog.has_no_list,
        "notes": catalog.notes,
        "chosen": chosen,
        "model": services().generations.upstream.known_model,
    }


def demo() -> str:
    """Asked by a page that was told that the demo model is being loaded, until it is."""
    return render_template("demo.html", loading=demo_is_loading(), catalog=services().catalog)


def demo_is_loading() -> bool:
    """Whether the demo model does not answer yet. Once it has, it is not asked again."""
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


def _prompt_with(model: str, conversation_id: str) -> str | None:
    """The system prompt of a conversation with this model, None where it is not known.

    The demo model has one of its own.
    """
    if not conversation_id:
        return None
    try:
        found = services().store.conversations.get(conversation_id, owner() or "", limit=1)
        own = found.settings.system_prompt
    except UnknownConversation:  # it is a new one
        own = None
    except StoreUnavailable:
        return None
    return services().chat.system_prompt(model, own)

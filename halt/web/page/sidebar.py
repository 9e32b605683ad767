"""The sidebar: the list of conversations, search, rename, delete and undo.

The blueprint also has the routes of `settings` and `files`. Responses to the page's script are HTML
fragments. Errors are shown in the toast, or in the settings panel for its own requests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from flask import Blueprint, Flask, Response, render_template, request, url_for

from halt.core.decoding import is_id
from halt.errors import HaltError, RequestError
from halt.store.models import Page, Summary
from halt.web.page import files, settings
from halt.web.page.toast import toast
from halt.web.requests import wants_fragment
from halt.web.responses import error_response
from halt.web.services import services
from halt.web.sessions import owner

QUERY_MAX = 500  # characters of a search

blueprint = Blueprint("sidebar", __name__)


def install(app: Flask) -> None:
    """Install the routes, and the functions that templates use, in the application."""
    app.jinja_env.globals["first_conversations"] = first_conversations
    app.jinja_env.globals["has_other_conversations"] = has_other_conversations
    app.jinja_env.globals["deletion_message"] = deletion_message
    app.jinja_env.filters["moment"] = moment
    app.register_blueprint(blueprint)


def moment(seconds: float) -> str:
    """Seconds since 1970 as an HTML `datetime` value, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def first_conversations() -> Page[Summary] | None:
    """The first part of the list of conversations; None where the store does not respond."""
    try:
        return services().store.conversations.summaries(owner() or "")
    except HaltError:
        return None


def has_other_conversations() -> bool:
    """Whether the store has conversations of other browsers. Called where this browser has none."""
    try:
        return services().store.conversations.has_any()
    except HaltError:
        return False


def _owner_id() -> str:
    """The requesting session; "" for a program without one, which has no conversations."""
    return owner() or ""


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> Response:
    response = error_response(error)
    if wants_fragment():
        is_panel = request.endpoint in {"sidebar.settings", "sidebar.save_settings"}
        response.headers["HX-Retarget"] = "#settings-fault" if is_panel else "#toast"
    return response


# --- the list -------------------------------------------------------------------------------------


@blueprint.get("/conversations")
def conversation_list() -> str:
    page = services().store.conversations.summaries(_owner_id(), request.args.get("cursor"))
    return render_template(
        "items.html", conversations=page.items, cursor=page.cursor, current=_current()
    )


@blueprint.get("/conversations/search")
def search_results() -> str:
    query = request.args.get("q", "").strip()
    if len(query) > QUERY_MAX:
        raise RequestError(f"Search for at most {QUERY_MAX} characters.", field="q")
    cursor = request.args.get("cursor")
    page = services().store.search.find(_owner_id(), query, cursor) if query else Page()
    return render_template(
        "hits.html", hits=page.items, cursor=page.cursor, query=query, further=cursor is not None
    )


@blueprint.get("/c/<conversation_id>/item")
def item(conversation_id: str) -> str:
    return _render_item(services().store.conversations.summary(conversation_id, _owner_id()))


@blueprint.get("/c/<conversation_id>/title")
def title_form(conversation_id: str) -> str:
    """The list item with a field for a new title."""
    summary = services().store.conversations.summary(conversation_id, _owner_id())
    return render_template("item.html", c=summary, renaming=True)


@blueprint.post("/c/<conversation_id>/title")
def rename(conversation_id: str) -> str:
    title = request.form.get("title", "")
    return _render_item(services().store.conversations.rename(conversation_id, _owner_id(), title))


@blueprint.post("/c/<conversation_id>/delete")
def delete(conversation_id: str) -> Response:
    """Delete a conversation and stop its running answers, in any worker."""
    running = services().store.conversations.delete(conversation_id, _owner_id())
    if running:  # no new answer can start in a deleted conversation
        services().generations.stop_many([(stream_id, None) for stream_id in running], _owner_id())
    if _open_now() == conversation_id:  # the page shows the deleted conversation
        stopped = "1" if running else None
        url = url_for("pages.index", deleted=conversation_id, stopped=stopped)
        return Response(headers={"HX-Redirect": url}, status=204)
    return toast(deletion_message(stopped=bool(running)), deleted=conversation_id)


def deletion_message(*, stopped: bool) -> str:
    """The text of the toast after a deletion."""
    return f"The conversation was deleted{', and its answer stopped' if stopped else ''}."


@blueprint.post("/c/<conversation_id>/undelete")
def undelete(conversation_id: str) -> Response:
    summary = services().store.conversations.undelete(conversation_id, _owner_id())
    response = toast(
        f"“{summary.title}” is back." if summary.title else "The conversation is back."
    )
    if "back" in request.form:  # it was open when it was deleted
        response.headers["HX-Redirect"] = url_for(
            "pages.show_conversation", conversation_id=summary.id
        )
    return response


def _render_item(summary: Summary) -> str:
    return render_template("item.html", c=summary, current=_current())


def _current() -> str:
    """The ID of the conversation that the page shows, from the request; "" for none."""
    conversation_id = request.args.get("current") or _open_now()
    return conversation_id if is_id(conversation_id) else ""


def _open_now() -> str:
    """The ID of the conversation whose page makes this request, from htmx's header; "" for none."""
    match = re.search(r"/c/([\w-]+)(?:[?#]|$)", request.headers.get("HX-Current-URL", ""))
    return match[1] if match else ""


# --- routes of other modules ----------------------------------------------------------------------

for path, view in (
    ("/settings", settings.first_settings),
    ("/c/<conversation_id>/settings", settings.settings),
    ("/export", files.export_all),
    ("/c/<conversation_id>/export", files.export),
):
    blueprint.add_url_rule(path, view_func=view)

for path, view in (
    ("/c/<conversation_id>/settings", settings.save_settings),
    ("/import", files.import_),
):
    blueprint.add_url_rule(path, view_func=view, methods=["POST"])

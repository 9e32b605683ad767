"""The sidebar: the list of conversations and its archive, search, and the changes made there.

The blueprint also has the routes of `exports`. Responses to the page's script are HTML fragments.
Errors are shown in the toast.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from flask import Blueprint, Flask, Response, render_template, request, url_for

from halt.core.decoding import is_id, is_number
from halt.errors import HaltError, RequestError, shortened
from halt.people.person import MINE
from halt.store.models import Hit, Page, Summary
from halt.web.identity import owner
from halt.web.page import exports
from halt.web.page.login import has_sign_in
from halt.web.page.toast import Undo, toast
from halt.web.requests import conversation_ids, wants_fragment
from halt.web.responses import error_response
from halt.web.services import services

QUERY_MAX = 500  # characters of a search
CHATS, HITS = 7, 10  # results of a search
MORE_HITS = 30  # of each further part
TITLE_SHOWN = 40  # characters of a title in a message
WORDS_MAX = 20  # words of a title

blueprint = Blueprint("sidebar", __name__)


def install(app: Flask) -> None:
    """Install the routes, and the functions that templates use, in the application."""
    app.jinja_env.globals["first_conversations"] = first_conversations
    app.jinja_env.globals["has_sign_in"] = has_sign_in
    app.jinja_env.globals["is_archive"] = is_archive
    app.jinja_env.globals["unlisted_conversations"] = unlisted_conversations
    app.jinja_env.globals["deletion_message"] = deletion_message_of_page
    app.jinja_env.globals["with_headings"] = with_headings
    app.register_blueprint(blueprint)


def with_headings(
    summaries: Sequence[Summary], cursor: str | None = None, *, archived: bool = False
) -> Iterator[tuple[str, Summary]]:
    """Each summary with the heading above it, "" for none.

    `cursor` is the one of the page before. The days are those of UTC; the page's script replaces
    them by those of the browser's time zone.
    """
    today = datetime.now(UTC).date()
    last = ""
    if cursor is not None:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            last = _heading(float(cursor.partition("~")[0]), today)
    for summary in summaries:
        is_pinned = summary.is_pinned and not archived
        heading = "Pinned" if is_pinned else _heading(summary.updated_at, today)
        yield ("" if heading == last else heading), summary
        last = heading


def _heading(seconds: float, today: date) -> str:
    """The heading of the conversations that were last used at this time."""
    day = datetime.fromtimestamp(seconds, UTC).date()
    ages = ((0, "Today"), (1, "Yesterday"), (7, "Last 7 days"), (30, "Last 30 days"))
    for days, heading in ages:
        if day >= today - timedelta(days):
            return heading
    return f"{day:%B}" if day.year == today.year else f"{day:%B %Y}"


def is_archive() -> bool:
    """Whether the request is for the archive in place of the list."""
    return request.args.get("archived") == "1"


def first_conversations() -> Page[Summary] | None:
    """The first part of the list of conversations; None where the store does not respond."""
    try:
        return services().store.conversations.summaries(owner(), archived=is_archive())
    except HaltError:
        return None


def unlisted_conversations() -> Literal["", "of_browsers", "of_earlier_version"]:
    """Which conversations of others the store has that this person may know how to get at.

    "of_browsers": this Halt gives each browser a list of its own. "of_earlier_version": an earlier
    version did, and no person has taken these conversations over yet. "" also where the store does
    not respond.
    """
    mode, owners = services().mode, services().store.owners
    with contextlib.suppress(HaltError):
        if mode == "anonymous" and owners.browsers_have_conversations(MINE.id):
            return "of_browsers"
        if mode == "mine" and owners.browsers():
            return "of_earlier_version"
    return ""


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> Response:
    response = error_response(error)
    if wants_fragment():
        response.headers["HX-Retarget"] = "#toast"
    return response


# --- the list -------------------------------------------------------------------------------------


@blueprint.get("/conversations")
def conversation_list() -> str:
    cursor = request.args.get("cursor")
    page = services().store.conversations.summaries(owner(), cursor, archived=is_archive())
    return render_template(
        "items.html",
        conversations=page.items,
        cursor=page.cursor,
        after=cursor,
        current=_current(),
    )


@blueprint.post("/conversations")
def change() -> Response:
    """Pin, archive or delete conversations, or undo that (`do`), all of them at once (`id`)."""
    ids, operation = conversation_ids(), request.form.get("do", "")
    store = services().store.conversations
    if operation == "delete":
        return _delete(ids)
    if operation in {"pin", "unpin"}:
        store.set_pinned(ids, owner(), pinned=operation == "pin")
        return Response(status=204)
    if operation not in {"archive", "unarchive"}:
        raise RequestError("do must be pin, unpin, archive, unarchive or delete.", field="do")
    count = store.set_archived(ids, owner(), archived=operation == "archive")
    chats = _chats(count, store.summary(ids[0], owner()).title if count == len(ids) == 1 else "")
    if operation == "unarchive":
        return toast(f"{chats} moved back to the list.")
    return toast(f"{chats} moved to the archive.", undo=Undo("unarchive", ids))


@blueprint.get("/conversations/search")
def search() -> str:
    """Chats with the words in their titles, and messages with the words; or the recent chats.

    With a cursor: further messages alone.
    """
    query, cursor = request.args.get("q", "").strip(), request.args.get("cursor")
    if len(query) > QUERY_MAX:
        raise RequestError(f"Search for at most {QUERY_MAX} characters.", field="q")
    store, words = services().store, query.split()[:WORDS_MAX]
    if not words:
        chats, hits = store.conversations.summaries(owner()).items[:CHATS], Page[Hit]()
    elif cursor is None:
        chats = store.conversations.titled(owner(), words, CHATS)
        hits = store.search.find(owner(), query, limit=HITS)
    else:
        chats, hits = (), store.search.find(owner(), query, cursor, MORE_HITS)
    titles = [(chat, _marked(chat.title or "New chat", words)) for chat in chats]
    return render_template(
        "hits.html", chats=titles, hits=hits, query=query, further=cursor is not None
    )


def _marked(text: str, words: Sequence[str]) -> list[tuple[str, bool]]:
    """Pieces of a text, and whether each is one of the words."""
    if not words:
        return [(text, False)]
    pieces = re.split(f"({'|'.join(map(re.escape, words))})", text, flags=re.IGNORECASE)
    return [(piece, n % 2 == 1) for n, piece in enumerate(pieces) if piece]


@blueprint.get("/c/<conversation_id>/item")
def item(conversation_id: str) -> str:
    return _render_item(services().store.conversations.summary(conversation_id, owner()))


@blueprint.get("/c/<conversation_id>/title")
def title_form(conversation_id: str) -> str:
    """The list item with a field for a new title."""
    summary = services().store.conversations.summary(conversation_id, owner())
    return render_template("item.html", c=summary, renaming=True)


@blueprint.post("/c/<conversation_id>/title")
def rename(conversation_id: str) -> str:
    title = request.form.get("title", "")
    return _render_item(services().store.conversations.rename(conversation_id, owner(), title))


@blueprint.post("/c/<conversation_id>/delete")
def delete(conversation_id: str) -> Response:
    """Delete a conversation."""
    return _delete([conversation_id])


def _delete(ids: Sequence[str]) -> Response:
    """Delete conversations and stop their running answers, in any worker."""
    deleted, running = services().store.conversations.delete_many(ids, owner())
    if running:  # no new answer can start in a deleted conversation
        services().generations.stop_many([(stream_id, None) for stream_id in running], owner())
    if (open_id := _open_now()) in deleted:  # the page shows a deleted conversation
        count = len(deleted) if len(deleted) > 1 else None
        stopped = len(running) or None
        url = url_for("pages.index", deleted=open_id, count=count, stopped=stopped)
        return Response(headers={"HX-Redirect": url}, status=204)
    message = deletion_message(len(deleted), len(running), _title_of_deleted(deleted[0]))
    return toast(message, deleted=deleted[0])


def deletion_message(deleted: int, stopped: int, title: str) -> str:
    """The text of the toast after a deletion, for these numbers of conversations and answers."""
    message = f"{_chats(deleted, title)} deleted"
    if stopped and deleted == 1:
        return f"{message}, and its answer stopped."
    return f"{message}, and {stopped} of their answers stopped." if stopped else f"{message}."


def deletion_message_of_page() -> str:
    """The same on the page that a deletion of the open conversation leads to."""
    deleted, stopped = (
        int(value) if is_number(value) else 0
        for value in (request.args.get("count", "1"), request.args.get("stopped", "0"))
    )
    return deletion_message(deleted, stopped, _title_of_deleted(request.args.get("deleted", "")))


def _title_of_deleted(conversation_id: str) -> str:
    """The title of a deleted conversation; "" where the store does not respond."""
    try:
        store = services().store.conversations
        return store.summary(conversation_id, owner(), deleted=True).title
    except HaltError:
        return ""


def _chats(count: int, title: str) -> str:
    """The subject of a message about one chat, by its title, or about several."""
    if count != 1:
        return f"{count:,} chats were"
    return f"“{shortened(title, TITLE_SHOWN)}” was" if title else "The chat was"


@blueprint.post("/c/<conversation_id>/undelete")
def undelete(conversation_id: str) -> Response:
    """Restore a deleted conversation, and those that were deleted together with it."""
    restored = services().store.conversations.undelete(conversation_id, owner())
    summary = restored[0]
    if len(restored) > 1:
        response = toast(f"{len(restored):,} chats are back.")
    else:
        response = toast(f"“{summary.title}” is back." if summary.title else "The chat is back.")
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
    ("/export", exports.export_all),
    ("/c/<conversation_id>/export", exports.export),
):
    blueprint.add_url_rule(path, view_func=view)

for path, view in (
    ("/export", exports.export_selected),
    ("/import", exports.import_),
):
    blueprint.add_url_rule(path, view_func=view, methods=["POST"])

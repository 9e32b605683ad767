"""The conversations beside the one that is open: the list, search, settings, files, undo.

What changes the page is a fragment. A fault is shown in the toast, or where the form is that it
belongs to. The pages of conversations themselves are in `halt.web.page.conversations`.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from urllib.parse import quote

from flask import Blueprint, Flask, Response, render_template, request, url_for
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import ClosingIterator

from halt.chat.settings import settings_from_form
from halt.core.decoding import is_id
from halt.errors import HaltError, RequestError, TooLarge
from halt.providers.catalog import valid_model_name
from halt.store.models import Page, Settings, Summary
from halt.store.portable import MESSAGE_MAX, PortableConversation, read, to_json, to_markdown
from halt.web.page.models import listed as listed_models
from halt.web.requests import wants_fragment
from halt.web.responses import error_response
from halt.web.services import services
from halt.web.sessions import ensure_owner, owner

QUERY_MAX = 500  # characters of a search

Writer = Callable[[Iterable[PortableConversation]], Iterator[bytes]]

#: The kinds of files: what writes them, their names' ending, what they are to a browser.
KINDS: dict[str, tuple[Writer, str, str]] = {
    "json": (to_json, "json", "application/json"),
    "markdown": (to_markdown, "md", "text/markdown"),
}

blueprint = Blueprint("sidebar", __name__)


def install(app: Flask) -> None:
    """Put the list and what belongs to it into the application, which has a store."""
    app.jinja_env.globals["first_conversations"] = first_conversations
    app.jinja_env.globals["has_other_conversations"] = has_other_conversations
    app.jinja_env.globals["deletion_message"] = deletion_message
    app.jinja_env.filters["moment"] = moment
    app.register_blueprint(blueprint)


def moment(seconds: float) -> str:
    """Seconds since 1970 as HTML says a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def first_conversations() -> Page[Summary] | None:
    """What a page begins its list with; None: it can't be had now."""
    try:
        return services().store.conversations.summaries(owner() or "")
    except HaltError:
        return None


def has_other_conversations() -> bool:
    """Whether other browsers have conversations here; asked where this browser has none."""
    try:
        return services().store.conversations.has_any()
    except HaltError:
        return False


def _mine() -> str:
    """Who asks; a program without a session has no conversations."""
    return owner() or ""


@blueprint.errorhandler(HaltError)
def _refused(error: HaltError) -> Response:
    response = error_response(error)
    if wants_fragment():
        panel = request.endpoint in {"sidebar.settings", "sidebar.save_settings"}
        response.headers["HX-Retarget"] = "#settings-fault" if panel else "#toast"
    return response


# --- the list -------------------------------------------------------------------------------------


@blueprint.get("/conversations")
def listed() -> str:
    page = services().store.conversations.summaries(_mine(), request.args.get("cursor"))
    return render_template(
        "items.html", conversations=page.items, cursor=page.cursor, current=_current()
    )


@blueprint.get("/conversations/search")
def searched() -> str:
    query = request.args.get("q", "").strip()
    if len(query) > QUERY_MAX:
        raise RequestError(f"Search for at most {QUERY_MAX} characters.", field="q")
    cursor = request.args.get("cursor")
    page = services().store.search.find(_mine(), query, cursor) if query else Page()
    return render_template(
        "hits.html", hits=page.items, cursor=page.cursor, query=query, further=cursor is not None
    )


@blueprint.get("/c/<conversation_id>/item")
def item(conversation_id: str) -> str:
    return _item(services().store.conversations.summary(conversation_id, _mine()))


@blueprint.get("/c/<conversation_id>/title")
def renaming(conversation_id: str) -> str:
    """The field for a new title, in the item's place."""
    found = services().store.conversations.summary(conversation_id, _mine())
    return render_template("item.html", c=found, renaming=True)


@blueprint.post("/c/<conversation_id>/title")
def rename(conversation_id: str) -> str:
    title = request.form.get("title", "")
    return _item(services().store.conversations.rename(conversation_id, _mine(), title))


@blueprint.post("/c/<conversation_id>/delete")
def delete(conversation_id: str) -> Response:
    """Delete it and stop what is being written in it, by whichever worker."""
    running = services().store.conversations.delete(conversation_id, _mine())
    if running:  # nothing new can begin in it
        services().generations.stop_many([(each, None) for each in running], _mine())
    if _open_now() == conversation_id:  # there is nothing left to see
        stopped = "1" if running else None
        there = url_for("pages.index", deleted=conversation_id, stopped=stopped)
        return Response(headers={"HX-Redirect": there}, status=204)
    return _toast(deletion_message(stopped=bool(running)), deleted=conversation_id)


def deletion_message(*, stopped: bool) -> str:
    """What the one who deletes a conversation is told."""
    return f"The conversation was deleted{', and its answer stopped' if stopped else ''}."


@blueprint.post("/c/<conversation_id>/undelete")
def undelete(conversation_id: str) -> Response:
    found = services().store.conversations.undelete(conversation_id, _mine())
    response = _toast(f"“{found.title}” is back." if found.title else "The conversation is back.")
    if "back" in request.form:  # it was open when it was deleted
        response.headers["HX-Redirect"] = url_for(
            "pages.show_conversation", conversation_id=found.id
        )
    return response


def _item(found: Summary) -> str:
    return render_template("item.html", c=found, current=_current())


def _current() -> str:
    """The conversation that the page shows, as the page itself says."""
    given = request.args.get("current") or _open_now()
    return given if is_id(given) else ""


def _open_now() -> str:
    """The conversation whose page makes this request."""
    found = re.search(r"/c/([\w-]+)(?:[?#]|$)", request.headers.get("HX-Current-URL", ""))
    return found[1] if found else ""


def _toast(message: str, deleted: str = "", opens: str = "") -> Response:
    return Response(
        render_template("toast.html", message=message, deleted=deleted, opens=opens),
        mimetype="text/html",
    )


# --- how a conversation's answers are asked for ---------------------------------------------------


@blueprint.get("/settings")
def first_settings() -> str:
    """Those of a conversation that has not begun."""
    return _panel(Settings())


@blueprint.get("/c/<conversation_id>/settings")
def settings(conversation_id: str) -> str:
    return _panel(services().store.conversations.get(conversation_id, _mine(), limit=1).settings)


@blueprint.post("/c/<conversation_id>/settings")
def save_settings(conversation_id: str) -> Response:
    if not is_id(conversation_id):
        raise RequestError("This can't name a conversation.", field="conversation_id")
    # The form shows the prompt of the model that was chosen when it was opened.
    own = services().chat.system_prompt(request.form.get("model"))
    demos = services().chat.system_prompt(services().config.embedded_model)
    wanted = settings_from_form(request.form, own, demos)
    store = services().store.conversations
    saved = store.set_settings(conversation_id, ensure_owner(), wanted).settings
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


def _panel(found: Settings) -> str:
    picked = request.args.get("model")  # the page's picker may be ahead of what was saved
    chosen = found.model if picked is None else valid_model_name(picked)
    return render_template(
        "settings.html",
        s=found,
        system_prompt=services().chat.system_prompt(chosen),
        **listed_models(chosen),
    )


# --- files ----------------------------------------------------------------------------------------


@blueprint.get("/export")
def export_all() -> Response:
    title = f"Halt {datetime.now(UTC):%Y-%m-%d}"
    return _download(services().store.transfer.export(_mine()), title)


@blueprint.get("/c/<conversation_id>/export")
def export(conversation_id: str) -> Response:
    found = services().store.transfer.export(_mine(), conversation_id)
    with services().exporting:
        only = next(found)
    return _download(chain([only], found), only.title)


def _download(conversations: Iterator[PortableConversation], title: str) -> Response:
    """A file that is written while it is sent; it takes a reader's place, as it may take long."""
    kind = request.args.get("format", "json")
    if kind not in KINDS:
        raise RequestError(f"format must be one of {', '.join(KINDS)}.", field="format")
    write, ending, mimetype = KINDS[kind]
    name = file_name(title, ending)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    names = {"filename": plain, "filename*": f"UTF-8''{quote(name)}"}
    service = services().generations
    response = Response(
        ClosingIterator(
            _in_turn(write(conversations), services().exporting), service.readers.give_back_place
        ),
        mimetype=mimetype,
    )
    response.headers.set("Content-Disposition", "attachment", **names)
    service.readers.take_place()  # last: the response's close gives it back
    return response


def _in_turn(parts: Iterator[bytes], making: threading.Lock) -> Iterator[bytes]:
    """The parts of a file; of all exports one part is made at a time."""
    while True:
        with making:
            part = next(parts, None)
        if part is None:
            return
        yield part


def file_name(title: str, ending: str) -> str:
    """A file's name: of the title what every system takes, never empty."""
    words = re.sub(r"[^\w.-]", " ", title).split()
    return f"{'-'.join(words)[:60].strip('-.') or 'conversation'}.{ending}"


@blueprint.post("/import")
def import_() -> Response:
    most = services().config.max_import_bytes
    request.max_content_length = request.max_form_memory_size = most
    with services().generations.readers.place():  # a large file may take a while to come
        try:
            given = request.files.get("file")
            data = given.read() if given else b""
        except RequestEntityTooLarge:
            raise TooLarge(
                f"The file is larger than {most:,} bytes (HALT_MAX_IMPORT_BYTES).", field="file"
            ) from None
        if not data:
            raise RequestError("Choose a file that Halt has exported as JSON.", field="file")
        # What Halt has written it reads again.
        longest = max(MESSAGE_MAX, services().config.max_answer_chars)
        ids = services().store.transfer.import_(ensure_owner(), read(data, longest))
    count = len(ids)
    message = f"{count:,} conversation{' was' if count == 1 else 's were'} imported."
    return _toast(message, opens=ids[0] if count == 1 else "")

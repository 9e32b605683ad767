"""The files of messages: taken from the page, and served to their person alone."""

from __future__ import annotations

import sys

from flask import Blueprint, Flask, Response, abort, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from halt.chat.file_contents import check_limits
from halt.chat.uploads import Uploaded
from halt.core.decoding import is_id
from halt.errors import TooLarge
from halt.files.facts import Role
from halt.files.names import clean_name
from halt.store.models import StoredFile
from halt.web.form_files import FormRequest, breaks_off
from halt.web.identity import owner
from halt.web.page.downloads import download_response
from halt.web.page.messages import start
from halt.web.services import services

#: A file that is opened by its address gets no scripts, no style and no cookies of the page.
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
#: Bytes beside the files in a form without scripts: its prompt and its other fields.
FORM_MORE = 1_000_000

blueprint = Blueprint("files", __name__)


@blueprint.post("/files")
def upload() -> tuple[dict[str, object], int]:
    """Take a file, which is the body; its name is the parameter `name`."""
    check_limits(services().config, 1, ())  # HALT_MAX_FILES may be 0
    request.max_content_length = sys.maxsize  # `take` has the limit, and names the file
    uploads = services().uploads
    with uploads.receiving(owner()):
        name, size = request.args.get("name", ""), request.content_length
        uploaded = uploads.take(owner(), name, _Body(), size)
    return as_json(uploaded), 201


class _Body:
    """The body of the request. Where it breaks off, `read` raises RequestError."""

    def read(self, size: int, /) -> bytes:
        with breaks_off():
            return request.stream.read(size)


def as_json(uploaded: Uploaded) -> dict[str, object]:
    """What a page or a program learns of a file."""
    facts = uploaded.facts
    return {
        "id": uploaded.file.hash,
        "name": uploaded.name,
        "kind": facts.kind,
        "label": facts.label,
        "detail": facts.detail,
        "tokens": facts.tokens,
    }


@blueprint.post("/files/messages/<conversation_id>")
def send_with_files(conversation_id: str) -> Response:
    """Send a message with files without scripts: one form with all of it."""
    if not is_id(conversation_id):
        abort(404)
    config = services().config
    limit = config.max_files * config.max_file_bytes + FORM_MORE
    request.max_content_length, request.max_form_memory_size = limit, FORM_MORE
    uploads = services().uploads
    with uploads.receiving(owner()):
        try:
            with breaks_off():
                chosen = [file for file in request.files.getlist("files") if file.filename]
        except RequestEntityTooLarge:
            raise TooLarge(f"The files have more than {limit:,} bytes.", field="files") from None
        g.typed = request.form.get("prompt", "")
        check_limits(config, len(chosen), ())
        taken = [uploads.take(owner(), file.filename or "", file.stream) for file in chosen]
    return start(conversation_id, [(file.file.hash, file.name) for file in taken])


@blueprint.get("/files/<file_hash>")
def image(file_hash: str) -> Response:
    """An image of the person, as it is shown."""
    return _image(file_hash, "content")


@blueprint.get("/files/<file_hash>/thumbnail")
def thumbnail(file_hash: str) -> Response:
    """A small picture of an image of the person."""
    return _image(file_hash, "thumbnail")


def _image(file_hash: str, role: Role) -> Response:
    """An image or its thumbnail. Raises UnknownFile."""
    file = services().store.files.get(owner(), file_hash)
    if file.facts.kind != "image":
        abort(404)
    response = Response(mimetype=_image_type(file, role))
    response.set_etag(f"{file.hash[:32]}-{role}")
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Content-Security-Policy"] = FILE_POLICY
    response.make_conditional(request)
    if response.status_code != 304:
        response.set_data(services().store.files.read(owner(), file_hash, role))
    return response


def _image_type(file: StoredFile, role: Role) -> str:
    """The media type of an image or its thumbnail: a thumbnail is a JPEG unless it has alpha."""
    return file.facts.media_type if role == "content" else file.facts.thumbnail_type


@blueprint.get("/files/<file_hash>/download")
def download(file_hash: str) -> Response:
    """A file of the person, to be saved; its name is the parameter `name`."""
    files = services().store.files
    file = files.get(owner(), file_hash)
    name = clean_name(request.args.get("name", ""))
    headers = {
        "Content-Length": str(file.sizes["content"]),
        "Content-Security-Policy": FILE_POLICY,
    }
    pieces = files.data(owner(), file_hash, "content")
    return download_response(pieces, name, file.facts.media_type, headers)


def install(app: Flask) -> None:
    """Add the routes to the application."""
    app.request_class = FormRequest
    app.register_blueprint(blueprint)

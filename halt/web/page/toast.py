"""The toast: a short message of the page, with an undo or a link."""

from __future__ import annotations

from flask import Response, render_template


def toast(message: str, deleted: str = "", opens: str = "") -> Response:
    """A toast. `deleted`, `opens`: the ID of a conversation to restore, or to open."""
    return Response(
        render_template("toast.html", message=message, deleted=deleted, opens=opens),
        mimetype="text/html",
    )

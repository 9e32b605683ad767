"""The toast: a short message of the page, with an undo or a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Response, render_template


@dataclass(frozen=True)
class Undo:
    """The change (`do` of POST /conversations) that undoes another one."""

    do: str
    conversation_ids: Sequence[str]


def toast(message: str, deleted: str = "", opens: str = "", undo: Undo | None = None) -> Response:
    """A toast. `deleted`, `opens`: the ID of a conversation to restore, or to open; `undo`: the
    change that its button makes.
    """
    return Response(
        render_template("toast.html", message=message, deleted=deleted, opens=opens, undo=undo),
        mimetype="text/html",
    )

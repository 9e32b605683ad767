"""The OpenAPI 3.1 document of the API: `/openapi.json`, and `/docs` for people.

openapi.yaml has all of it, except for the version and whether a token is required.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml  # noqa: F401 - msgspec imports it when it first decodes YAML, which a request does
from flask import Blueprint, Response, render_template

from halt import VERSION
from halt.web.responses import json_response
from halt.web.services import services

FILE = Path(__file__).with_name("openapi.yaml")


@cache
def _written() -> dict[str, Any]:
    """The content of the file, with references to error responses replaced by the responses.

    The first request reads it (0.05 s of CPU), not the import, so that it delays no start.
    Simultaneous requests may each read it: they get equal documents, and none is modified.
    """
    written: dict[str, Any] = msgspec.yaml.decode(FILE.read_bytes())
    errors = written["components"].pop("responses")
    for methods in written["paths"].values():
        for operation in methods.values():
            operation["responses"] = {
                status: errors[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer
                for status, answer in operation["responses"].items()
            }
    return written


def document(*, token: bool) -> dict[str, Any]:
    """The whole document; `token`: whether this server requires an access token."""
    written = _written()
    return {
        **written,
        "info": {**written["info"], "version": VERSION},
        "security": [{"token": []}] if token else [],
    }


blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def described() -> Response:
    """The document as JSON."""
    return json_response(document(token=bool(services().config.token)))


@blueprint.get("/docs")
def docs() -> str:
    """The document as a page."""
    return render_template("docs.html", api=document(token=bool(services().config.token)))

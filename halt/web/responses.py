"""Responses of all routes: JSON, and errors in the format that the client expects.

An error is JSON for programs, an HTML fragment or page for people, and has OpenAI's format under
/v1. An unexpected exception is logged, and its response has no details.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import msgspec
from flask import Flask, Response, after_this_request, current_app, render_template, request
from markupsafe import escape
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response as BaseResponse

from halt.core.events import encode
from halt.core.request_ids import current
from halt.errors import HaltError, TooLarge
from halt.web.request_ids import with_request_id
from halt.web.requests import is_openai, is_plain_form_post, wants_fragment, wants_page
from halt.web.schemas import Error, ErrorDetail, OpenAIError, OpenAIErrorDetail

logger = logging.getLogger(__name__)

#: What a fragment has beside the message of an error with this code.
_OPENERS = {
    "images_not_read": ' <button type="button" popovertarget="models">Choose a model</button>'
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "context_too_long": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "insufficient_quota",
    "too_many_requests": "rate_limit_exceeded",
}


def json_response(value: Any, status: int = 200) -> Response:
    """Any value that msgspec can encode, as JSON."""
    return Response(encode(value) + b"\n", status, mimetype="application/json")


def add_stream_id_header(stream_id: str) -> None:
    """Set `X-Stream-Id` in the response to this request, also if it becomes an error."""

    @after_this_request
    def add_header(response: Response) -> Response:
        response.headers["X-Stream-Id"] = stream_id
        return response


def openai_error(
    status: int, code: str, message: str, request_id: str, field: str | None = None
) -> OpenAIError:
    """An error in OpenAI's format, with OpenAI's types and codes where they exist."""
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if status == 401:
        code = "invalid_api_key"
    openai_code = _OPENAI_CODES.get(code, code)
    text = with_request_id(message, request_id)
    return OpenAIError(OpenAIErrorDetail(text, kind, field, openai_code))


class RequestRefused(HaltError):
    """A request that is refused with this status and code."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status, self.code, self.retryable = status, code, retryable


def error_response(error: HaltError) -> Response:
    """The response for an error: JSON, OpenAI's format, an HTML fragment or a page."""
    request_id, status, code, message = current(), error.status, error.code, error.message
    if status == 500:  # the details are in the log only
        message = with_request_id(message, request_id)
    if wants_fragment():
        # No template: a Stop may be refused, and the path of a Stop must not wait.
        html = f'<p class="fault" role="alert" data-code="{escape(code)}">{escape(message)}'
        html += f"{_OPENERS.get(code, '')}</p>"
        response = Response(html, status, mimetype="text/html")
        response.headers["HX-Retarget"] = "#notice"
        response.headers["HX-Reswap"] = "innerHTML"
    elif is_openai():
        body = openai_error(status, code, message, request_id, error.field)
        response = json_response(body, status)
        if not error.retryable or "X-Stream-Id" in request.headers:
            # OpenAI's clients obey it. They would retry without effect, or with an ID in use.
            response.headers["X-Should-Retry"] = "false"
    elif wants_page() or is_plain_form_post():
        page = render_template(
            "error.html", message=message, status=status, code=code, retryable=error.retryable
        )
        return error_page(page, error)
    else:
        field = msgspec.UNSET if error.field is None else error.field
        detail = ErrorDetail(code, message, error.retryable, request_id, field)
        response = json_response(Error(detail), status)
    return _with_retry_after(response, error)


def error_page(page: str, error: HaltError) -> Response:
    """A page that shows the error, with the error's status and its `Retry-After`."""
    return _with_retry_after(Response(page, error.status), error)


def _with_retry_after(response: Response, error: HaltError) -> Response:
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return response


def too_large() -> TooLarge:
    """The error for a body over the current request's limit."""
    return TooLarge(f"The body is larger than {request.max_content_length} bytes.", field="body")


def _on_http_error(error: HTTPException) -> BaseResponse:
    status = error.code or 500
    if status < 400:
        return error.get_response()  # a redirect
    if status == 413:
        return error_response(too_large())
    name = error.name.lower().replace(" ", "_")
    message = error.description or error.name
    if status == 404 and is_openai():
        name, message = "unknown_path", _unknown_path_message()
    elif status == 404 and wants_page():
        message = f"There is no page {_shown_path()}."
    elif status == 404:
        message = f"There is no route {_shown_path()}. GET /docs lists the API."
    elif isinstance(error, MethodNotAllowed):
        allowed = set(error.valid_methods or ())
        methods = ", ".join(sorted(allowed - {"HEAD", "OPTIONS"} or allowed))
        message = f"{_shown_path()} does not allow {request.method[:20]}. Allowed: {methods}."
    response = error_response(RequestRefused(status, name, message))
    for header, value in error.get_headers():
        if header.lower() == "allow":
            response.headers["Allow"] = value
    return response


def _shown_path() -> str:
    """The request's path, cut to the length that a message may have of it."""
    return request.path[:200]


def _unknown_path_message() -> str:
    """The message of a 404 under /v1: the paths that exist."""
    paths = sorted(
        f"{method} {re.sub('<[^<>]*>', 'ID', rule.rule)}"
        for rule in current_app.url_map.iter_rules()
        if rule.rule.startswith("/v1/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    )
    return f"There is no route {_shown_path()}. Routes: {', '.join(paths)}."


def _on_unexpected_error(error: Exception) -> Response:
    logger.error("unforeseen error in %s %s", request.method, request.path, exc_info=error)
    message = "Halt had an internal error. Its log has the details."
    return error_response(RequestRefused(500, "internal", message, retryable=True))


def install(app: Flask) -> None:
    """Install the error handlers in the application."""
    app.register_error_handler(HaltError, error_response)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_unexpected_error)

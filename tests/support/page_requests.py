"""Headers of the requests that the page makes with htmx."""

from __future__ import annotations

FORM_HEADERS = {"Content-Type": "application/x-www-form-urlencoded"}
PAGE_HEADERS = FORM_HEADERS | {"HX-Request": "true"}
#: The page follows the answer in the response to the form.
STREAM_HEADERS = PAGE_HEADERS | {"Accept": "text/html, text/event-stream"}

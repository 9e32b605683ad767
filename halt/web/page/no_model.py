"""What the page offers where no model is set up, or the demo model alone."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from halt.providers import embedded_model
from halt.web.identity import person
from halt.web.services import services

MODELS_PAGE = "/settings/models"


def offers() -> dict[str, Any]:
    """The variables of `no_model.html`, `demo.html` and `picker.html`."""
    return {
        "models_page": MODELS_PAGE,
        "may_manage": may_manage,
        "add_model_page": add_model_page,
        "demo_text": _demo_text,
    }


def may_manage() -> bool:
    """Whether the person may change what all people use."""
    return services().mode == "mine" or person().is_admin


def add_model_page(address: str = "") -> str:
    """The URL of the form that connects a provider; `address`: of its server, if that is known."""
    query = urlencode({"preset": "compatible", "address": address}) if address else ""
    return f"{MODELS_PAGE}/add{'?' if query else ''}{query}"


def _demo_text() -> str:
    """Why the demo model does not run, and how it would. Code is between backquotes."""
    config = services().config
    if config.embedded_fault:
        return config.embedded_fault
    if not config.discovered:
        return "It starts only with `halt-chat`, or with gunicorn and Halt's `gunicorn.conf.py`."
    if embedded_model.is_installed():
        return "It starts with Halt where there is no other model: restart Halt to use it."
    return f"It is not installed: run `{embedded_model.INSTALL}`, and restart Halt."

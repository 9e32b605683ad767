"""What the page offers where no model is set up, or the demo model alone."""

from __future__ import annotations

from typing import Any

from flask import url_for

from halt.providers import embedded_model
from halt.web.services import services


def offers() -> dict[str, Any]:
    """The variables of `no_model.html`, `demo.html` and `picker.html`."""
    return {
        "models_page": url_for("providers.show"),
        "add_model_page": add_model_page,
        "demo_text": _demo_text,
    }


def add_model_page(address: str = "") -> str:
    """The URL of the form that connects a provider; `address`: of its server, if that is known."""
    return url_for("providers.add", preset="compatible", address=address or None)


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

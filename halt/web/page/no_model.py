"""What the page offers where no model is set up, or the demo model alone."""

from __future__ import annotations

from typing import Any

from flask import url_for

from halt.people.person import MINE
from halt.providers import embedded_model
from halt.web.identity import person
from halt.web.services import services


def offers() -> dict[str, Any]:
    """The variables of `no_model.html`, `demo.html` and `picker.html`."""
    return {
        "models_page": url_for("providers.show"),
        "may_manage": may_manage,
        "add_model_page": add_model_page,
        "demo_text": _demo_text,
    }


def may_manage() -> bool:
    """Whether the person may change what all people use."""
    return person() == MINE if services().mode == "mine" else person().is_admin


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

"""The icons of the page, for templates and for HTML that is made without them."""

from __future__ import annotations

from markupsafe import Markup


def icon(name: str) -> Markup:
    """An icon of the sprite in `icons.html`. Its control needs an accessible name of its own."""
    return Markup(  # noqa: S704 - a name from the code
        f'<svg class="icon i-{name}" aria-hidden="true"><use href="#i-{name}"/></svg>'
    )

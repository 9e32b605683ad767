"""The web app manifest, with which browsers install the page as an application of its own."""

from __future__ import annotations

from flask import Response, url_for

from halt.web.responses import json_response

#: The colour of the page in the light theme, `--paper` in `static/css/tokens.css`.
PAPER = "#fbfaf8"
#: File -> size in pixels, purpose.
ICONS = {
    "icons/icon-192.png": (192, "any"),
    "icons/icon-512.png": (512, "any"),
    "icons/maskable-512.png": (512, "maskable"),
}


def manifest() -> Response:
    """The manifest. Its addresses are relative to its own, so that they hold below a path too."""
    root = url_for("pages.index")
    response = json_response(
        {
            "name": "Halt",
            "short_name": "Halt",
            "description": "A chat whose Stop closes the connection to the model.",
            "start_url": "./",
            "scope": "./",
            "display": "standalone",
            "background_color": PAPER,
            "theme_color": PAPER,
            "icons": [
                {
                    "src": url_for("static", filename=name).removeprefix(root),
                    "sizes": f"{size}x{size}",
                    "type": "image/png",
                    "purpose": purpose,
                }
                for name, (size, purpose) in ICONS.items()
            ],
        }
    )
    response.mimetype = "application/manifest+json"
    return response

"""Paths of templates and static files: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
#: The folder of the checkout; None if Halt is installed as a package.
CHECKOUT = None if (PACKAGE / "templates").is_dir() else PACKAGE.parent
FOLDER = CHECKOUT or PACKAGE

TEMPLATES = FOLDER / "templates"
STATIC = FOLDER / "static"
GUNICORN_SETTINGS = FOLDER / "gunicorn.conf.py"

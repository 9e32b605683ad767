"""Where the files are that are not Python: in the package where it is installed, else beside it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
#: The folder of the checkout; None where Halt is installed as a package.
CHECKOUT = None if (PACKAGE / "templates").is_dir() else PACKAGE.parent
FOLDER = CHECKOUT or PACKAGE

TEMPLATES = FOLDER / "templates"
STATIC = FOLDER / "static"
GUNICORN_SETTINGS = FOLDER / "gunicorn.conf.py"

"""Halt whose workers block while they load: `gunicorn tests.support.held_app:app`.

A worker continues after one byte from the pipe at HELD_BY, a variable of this module.
"""

from __future__ import annotations

import os

os.read(os.open(os.environ["HELD_BY"], os.O_RDONLY), 1)

from app import app  # noqa: E402

__all__ = ["app"]

"""Halt whose workers wait while they load: `gunicorn tests.support.held_app:app`.

Each goes on with one byte from the pipe at HELD_BY, which is no setting of Halt's.
"""

from __future__ import annotations

import os

os.read(os.open(os.environ["HELD_BY"], os.O_RDONLY), 1)

from app import app  # noqa: E402

__all__ = ["app"]

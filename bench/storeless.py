"""A Halt application that stores nothing of its streams, to measure the cost of the store.

`bench.processes` starts it, with gunicorn and the usual settings of Halt.
"""

from __future__ import annotations

from halt.app import create_app
from halt.web.services import services

app = create_app()
services(app).generations._writer = None

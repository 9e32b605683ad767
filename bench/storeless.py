"""A Halt that writes down nothing of what its streams bring: what the store costs is the rest.

`bench.processes` starts it, by gunicorn with the settings that Halt always has.
"""

from __future__ import annotations

from halt.app import create_app
from halt.web.services import services

app = create_app()
services(app).generations._writer = None

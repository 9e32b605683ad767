"""A Halt that writes down nothing of what its streams bring: what the store costs is the rest.

`tests.bench.processes` starts it, by gunicorn with the settings that Halt always has.
"""

from __future__ import annotations

from halt.app import create_app

app = create_app()
app.extensions["halt"]._recorder = None
